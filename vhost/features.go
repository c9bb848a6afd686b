package vhost

// FeatureProtocolFeatures is VHOST_USER_F_PROTOCOL_FEATURES, the only virtio feature bit that
// belongs to the protocol.
const FeatureProtocolFeatures = uint64(1) << 30

// FeatureVersion1 is VIRTIO_F_VERSION_1: the device is not a legacy one.
const FeatureVersion1 = uint64(1) << 32

// FeatureLogAll is VHOST_F_LOG_ALL: the back-end marks its writes in the dirty log.
const FeatureLogAll = uint64(1) << 26

// Protocol feature bits (VHOST_USER_PROTOCOL_F_*), as masks.
const (
	ProtocolMQ                uint64 = 1 << 0
	ProtocolLogShmfd          uint64 = 1 << 1
	ProtocolReplyAck          uint64 = 1 << 3
	ProtocolBackendReq        uint64 = 1 << 5
	ProtocolConfig            uint64 = 1 << 9
	ProtocolInflightShmfd     uint64 = 1 << 12
	ProtocolResetDevice       uint64 = 1 << 13
	ProtocolConfigureMemSlots uint64 = 1 << 15
	ProtocolStatus            uint64 = 1 << 16
)

// ProtocolFeatures are the protocol features that a session offers.
const ProtocolFeatures = ProtocolMQ | ProtocolReplyAck | ProtocolBackendReq | ProtocolConfig |
	ProtocolInflightShmfd | ProtocolResetDevice | ProtocolConfigureMemSlots | ProtocolStatus
