package backend

import (
	"fmt"
	"sync"
	"sync/atomic"

	"cowblk/vhost/blk"
)

// writeCache decides whether a write is stable when it completes (virtio 1.2, 5.2.6.2). The
// decision depends on what the driver has negotiated and on the writeback field of the
// configuration space:
//
//	FLUSH  CONFIG_WCE  write cache
//	no     no          off: the driver cannot flush
//	no     yes         writeback, which starts as 0 (5.2.5.2)
//	yes    no          on; off if Cache.WriteThrough
//	yes    yes         writeback, which starts as 1; as 0 if Cache.WriteThrough
//
// With DeviceOptions.WritebackWithoutFlush every driver counts as one that has negotiated FLUSH.
// Until features are negotiated, and in doubt, the cache is off: a write that is stable too early
// does no harm.
//
// QEMU keeps a copy of writeback, which it reads once when it starts and its drivers change. It
// shows the copy to later drivers, also after a reset, and also after it has reconnected to another
// back-end. So the cache stays off, whatever the field says, while the front-end may show 0: until
// it reads or writes the field again. write_cache_mark.go tells the next process. A driver without
// CONFIG_WCE does not see the field.
type writeCache struct {
	off atomic.Bool // in force; workers read it for each write

	mu           sync.Mutex
	initial      WriteCacheSetting // for the next driver
	now          WriteCacheSetting // initial, at the last reset
	negotiated   bool              // since the last reset
	features     uint64            // valid if negotiated
	written      writeback         // by the driver since the last reset
	early        bool              // written while no queue ran, before the driver negotiated
	frontendsOff bool              // the front-end may show its driver a writeback of 0
	known        bool              // frontendsOff belongs to this connection
}

// WriteCacheSetting is the operator's setting of a disk's write cache.
type WriteCacheSetting struct {
	Off          bool // Cache.WriteThrough
	WithoutFlush bool // DeviceOptions.WritebackWithoutFlush
}

func (s WriteCacheSetting) Check() error {
	if s.Off && s.WithoutFlush {
		return fmt.Errorf("writeback-without-flush: expected a write cache that is on; write-through has none")
	}
	return nil
}

// writeback is the driver's value of the field.
type writeback int8

const (
	notWritten writeback = iota
	writtenOff           // 0
	writtenOn            // 1
)

// set changes the setting for the next driver.
func (c *writeCache) set(s WriteCacheSetting) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.initial = s
}

func (c *writeCache) setting() WriteCacheSetting {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.initial
}

// reset resets the device's negotiation.
func (c *writeCache) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now, c.negotiated, c.features = c.initial, false, 0
	c.written, c.early = notWritten, false
	c.update()
}

// negotiate takes the features that a driver has accepted. news: they differ from before. refused:
// the driver has no write cache although it could have one.
func (c *writeCache) negotiate(features uint64) (news, refused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	news = !c.negotiated || features != c.features
	if news && !c.early {
		c.written = notWritten // by the driver before, whose reset was not reported
	}
	c.negotiated, c.features, c.early = true, features, false
	c.update()
	return news, !c.now.Off && !c.flushes() && features&blk.FeatureConfigWCE == 0
}

// write takes the driver's new value of writeback; running: queues run.
func (c *writeCache) write(on, running bool) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.field()
	c.written = writtenOff
	if on {
		c.written = writtenOn
	}
	c.early, c.frontendsOff, c.known = !running, !on, true
	c.update()
	return before != on
}

// read returns writeback for a front-end that reads it.
func (c *writeCache) read() (on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	on = c.field()
	c.frontendsOff, c.known = !on, true
	c.update()
	return on
}

// connect begins a connection of any front-end.
func (c *writeCache) connect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = false
}

// restore notes that the front-end showed its driver a writeback of 0 while another process served
// it.
func (c *writeCache) restore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known {
		c.frontendsOff = true
		c.update()
	}
}

func (c *writeCache) frontendShowsOff() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frontendsOff
}

// shown reports whether the write cache is on, or, without a driver, would be on for a driver that
// negotiates everything.
func (c *writeCache) shown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.negotiated {
		return !c.now.Off
	}
	return !c.off.Load()
}

// flushes reports whether the driver is expected to flush.
func (c *writeCache) flushes() bool {
	return c.now.WithoutFlush || c.features&blk.FeatureFlush != 0
}

// field returns the present value of writeback. Without CONFIG_WCE the driver ignores it, and the
// next driver finds it.
func (c *writeCache) field() bool {
	switch {
	case c.written != notWritten:
		return c.written == writtenOn
	case c.features&blk.FeatureConfigWCE != 0 && !c.flushes():
		return false
	}
	return !c.now.Off
}

// update recomputes off.
func (c *writeCache) update() {
	on := c.negotiated && c.field()
	if c.features&blk.FeatureConfigWCE != 0 {
		on = on && !c.frontendsOff
	} else {
		on = on && !c.now.Off && c.flushes() // this driver cannot switch it on
	}
	c.off.Store(!on)
}
