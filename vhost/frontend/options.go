package frontend

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cowblk/vhost"
)

// Device and ring features (virtio 1.2, 5.2.3 and 6), as masks.
const (
	FeatureSizeMax     uint64 = 1 << 1
	FeatureSegMax      uint64 = 1 << 2
	FeatureRO          uint64 = 1 << 5
	FeatureBlkSize     uint64 = 1 << 6
	FeatureFlush       uint64 = 1 << 9
	FeatureTopology    uint64 = 1 << 10
	FeatureConfigWCE   uint64 = 1 << 11
	FeatureMQ          uint64 = 1 << 12
	FeatureDiscard     uint64 = 1 << 13
	FeatureWriteZeroes uint64 = 1 << 14
	FeatureIndirect    uint64 = 1 << 28
	FeatureEventIdx    uint64 = 1 << 29
	FeatureVersion1    uint64 = vhost.FeatureVersion1
)

// DriverFeatures are all bits that the driver supports.
const DriverFeatures = FeatureSizeMax | FeatureSegMax | FeatureRO | FeatureBlkSize | FeatureFlush |
	FeatureTopology | FeatureConfigWCE | FeatureMQ | FeatureDiscard | FeatureWriteZeroes |
	FeatureIndirect | FeatureEventIdx | FeatureVersion1

// Style selects the front-end to imitate.
type Style int

const (
	// QEMU 7.2 to 10: protocol features first, memory before rings, rings enabled last; at the end
	// rings are disabled, then stopped.
	QEMU Style = iota
	// SPDK's initiator: features before protocol features, no reply-ack, rings enabled before any
	// other message about them, no FLUSH and no INDIRECT; at the end rings are stopped and the
	// memory table is sent once more.
	SPDK
)

// styles are the names of the styles.
func styles() []string { return []string{QEMU: "qemu", SPDK: "spdk"} }

func (s Style) String() string {
	if names := styles(); s >= 0 && int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("style %d", int(s))
}

// MarshalText returns the style's name.
func (s Style) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText parses a style's name.
func (s *Style) UnmarshalText(text []byte) error {
	i := slices.Index(styles(), string(text))
	if i < 0 {
		return fmt.Errorf("front-end style %q, expected one of %s", text, strings.Join(styles(),
			", "))
	}
	*s = Style(i)
	return nil
}

// Options configures a front-end. The zero value is a guest with one queue of 128 descriptors and
// 64 MiB of memory on QEMU.
type Options struct {
	Style     Style
	Queues    int    // 0: 1
	QueueSize uint16 // descriptors, a power of two; 0: 128
	// InflightQueueSize is the queue size in GET_INFLIGHT_FD, in descriptors; 0: QueueSize. QEMU
	// 10.0.13 sends 128 and has larger rings.
	InflightQueueSize uint16
	Memory            int64 // bytes; 0: 64 MiB; rounded up to whole 2 MiB per region
	Regions           int   // 0: 1; more than 8 only if the back-end has memory slots
	Hugepages         bool  // memory from 2 MiB pages (SPDK's back-end needs them)

	// Refuse are virtio bits not to accept although both sides support them.
	Refuse uint64
	// Protocol are the protocol features to accept; 0: all supported ones.
	Protocol uint64
	// NoProtocol does not accept VHOST_USER_F_PROTOCOL_FEATURES, like the oldest front-ends: no
	// configuration space, rings start enabled.
	NoProtocol bool
	// AckAll requests an answer to every message, if that was negotiated; QEMU requests few.
	AckAll bool
	// NoStart does not start the rings; the caller calls Start.
	NoStart bool

	// Slots bounds the requests in flight on each ring, and so the memory of buffers; 0: the ring's
	// capacity.
	Slots int
	// MaxTransfer is the size of a slot's buffer in bytes; 0: as large as half of the memory
	// allows, at most 1 MiB.
	MaxTransfer int
	// Poll makes the driver spin with interrupts suppressed; otherwise it blocks on the call
	// eventfd.
	Poll bool
	// NoKick sends no kick descriptor: the back-end must poll the ring.
	NoKick bool
	// Timeout bounds every wait for the back-end; 0: 30 s.
	Timeout time.Duration
}

func (o Options) withDefaults() (Options, error) {
	if o.Queues == 0 {
		o.Queues = 1
	}
	if o.QueueSize == 0 {
		o.QueueSize = 128
	}
	if o.InflightQueueSize == 0 {
		o.InflightQueueSize = o.QueueSize
	}
	if o.Memory == 0 {
		o.Memory = 64 << 20
	}
	if o.Regions == 0 {
		o.Regions = 1
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Protocol == 0 {
		o.Protocol = vhost.ProtocolFeatures
	}
	if o.Style == SPDK {
		o.Refuse |= FeatureFlush | FeatureIndirect | FeatureEventIdx
		o.Protocol &= vhost.ProtocolMQ | vhost.ProtocolConfig
	}
	switch {
	case o.Queues < 0 || o.Queues > vhost.MaxQueues:
		return o, fmt.Errorf("front-end: %d queues, expected 1 to %d", o.Queues, vhost.MaxQueues)
	case o.QueueSize&(o.QueueSize-1) != 0 || o.QueueSize > 32768:
		return o, fmt.Errorf("front-end: queue size %d, expected a power of two up to 32768",
			o.QueueSize)
	case o.Memory < 0 || o.Regions < 0 || o.MaxTransfer < 0 || o.Slots < 0:
		return o, errors.New("front-end: negative size in the options")
	}
	step := int64(o.Regions) * regionAlign
	o.Memory = (o.Memory + step - 1) / step * step
	return o, nil
}
