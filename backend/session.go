package backend

import (
	"errors"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/cow"
	"cowblk/vhost"
)

// Observer is what a device reports to. Workers call the functions: they must not wait, and must
// not call the device. A nil function is not called.
type Observer struct {
	IOError func(IOErrorEvent)    // a request failed; at most one call in 10 seconds
	Parked  func(io *cow.Request) // a request was parked
	Procs   *MaxProcs             // counts running queues; nil: not counted
}

func (o *Observer) ioError(e IOErrorEvent) {
	if o.IOError != nil {
		o.IOError(e)
	}
}

func (o *Observer) parked(io *cow.Request) {
	if o.Parked != nil {
		o.Parked(io)
	}
}

// Observe sets what the device reports to. It must be called before Serve.
func (d *Device) Observe(o Observer) { d.observer = o }

// Serve serves one front-end until it disconnects, breaks the protocol, or Drain was called and the
// connection is closed. It closes conn. Each device serves one front-end at a time. LacksResources
// distinguishes errors that are not the front-end's.
func (d *Device) Serve(conn *net.UnixConn, log *slog.Logger) error {
	d.cache.connect()
	d.Reset() // settings may have changed since the last front-end left
	d.kicks.begin(d, log)
	err := vhost.Serve(conn, d, vhost.Options{Log: log})
	conn.Close()
	d.kicks.end()
	d.Reset()
	if err != nil && !LacksResources(err) {
		d.rejected.Add(1)
	}
	return err
}

// LacksResources reports whether a session ended because this process, not the front-end, ran out
// of descriptors or memory.
func LacksResources(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

// Name returns DeviceOptions.Name.
func (d *Device) Name() string { return d.name }

// ReadOnly reports whether the device offers VIRTIO_BLK_F_RO.
func (d *Device) ReadOnly() bool { return d.config.ReadOnly }

// Direct reports whether the disk was opened with cow.Options.Direct.
func (d *Device) Direct() bool { return d.direct }

// Poll returns the time that an idle queue polls at most.
func (d *Device) Poll() time.Duration { return time.Duration(d.poll.Load()) }

// WriteCacheOn reports whether the write cache is on, or would be for a driver that negotiates all
// that is offered while there is none.
func (d *Device) WriteCacheOn() bool { return d.cache.shown() }

// WriteCache returns the setting that the next driver finds.
func (d *Device) WriteCache() WriteCacheSetting { return d.cache.setting() }

// SetWriteCache changes the setting that the next driver finds. s.Check must have returned nil.
func (d *Device) SetWriteCache(s WriteCacheSetting) { d.cache.set(s) }

// Disk returns the disk that is served now, or was last.
func (d *Device) Disk() *cow.Disk { return d.disk.Load() }

// Reopen lets queues start again after Drain, on the same disk or on one that was opened anew.
func (d *Device) Reopen(disk *cow.Disk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disk.Store(disk)
	d.closing = false
	disk.NotifyFailure(d.diskFailed)
}
