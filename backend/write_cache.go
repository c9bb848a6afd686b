package backend

import (
	"fmt"
	"sync"
	"sync/atomic"

	"cowblk/vhost/blk"
)

// writeCache decides whether a write is stable as soon as it completes (virtio 1.2,
// 5.2.6.2), by what the driver has negotiated and by the writeback field of the
// configuration space:
//
//	FLUSH  CONFIG_WCE  write cache
//	no     no          off: nobody would ever flush
//	no     yes         writeback, which starts as 0 (5.2.5.2)
//	yes    no          on; off if Cache.WriteThrough
//	yes    yes         writeback, which starts as 1; as 0 if Cache.WriteThrough
//
// With DeviceOptions.WritebackWithoutFlush every driver counts as one that has
// negotiated FLUSH. Until features are negotiated the cache is off. In doubt it is off
// too: a write that is stable too early does no harm.
//
// Front-ends do not tell all that happens. QEMU keeps a copy of writeback, read once when
// it starts and changed by its drivers; it shows the copy to later drivers, after a reset
// as well, and after a reconnection to another back-end. So the cache stays off, whatever
// the field says, for as long as the front-end may show 0: until it reads the field
// again, or writes it; writecachemark.go lets the next process know. A driver without
// CONFIG_WCE is not shown the field.
type writeCache struct {
	off atomic.Bool // in force; read by workers for each write

	mu           sync.Mutex
	initial      WriteCacheSetting // of the next driver
	now          WriteCacheSetting // initial, as it was at the last reset
	negotiated   bool              // since the last reset
	features     uint64            // valid if negotiated
	written      writeback         // by the driver, since the last reset
	early        bool              // written while no queue ran, by a driver that has not negotiated yet
	frontendsOff bool              // the front-end may show its driver a writeback of 0
	known        bool              // frontendsOff is of this connection
}

// WriteCacheSetting is what the operator has said about a disk's write cache.
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

// writeback is the field of that name.
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

// reset is the device's: nothing is negotiated any more.
func (c *writeCache) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now, c.negotiated, c.features = c.initial, false, 0
	c.written, c.early = notWritten, false
	c.update()
}

// negotiate takes the features that a driver has accepted. It reports whether they are
// news, and whether the driver has no write cache although it might.
func (c *writeCache) negotiate(features uint64) (news, refused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	news = !c.negotiated || features != c.features
	if news && !c.early {
		c.written = notWritten // by the driver before, whose reset was not told
	}
	c.negotiated, c.features, c.early = true, features, false
	c.update()
	return news, !c.now.Off && !c.flushes() && features&blk.FeatureConfigWCE == 0
}

// write takes what the driver has written to writeback; running: queues are.
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

// connect begins a connection, of the same front-end or another one.
func (c *writeCache) connect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = false
}

// recall is told that the front-end showed a writeback of 0 to its driver when another
// process served it.
func (c *writeCache) recall() {
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

// shown returns whether the write cache is on, or would be for a driver that negotiates
// all that is offered while there is none.
func (c *writeCache) shown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.negotiated {
		return !c.now.Off
	}
	return !c.off.Load()
}

// flushes reports whether the driver can be expected to flush.
func (c *writeCache) flushes() bool {
	return c.now.WithoutFlush || c.features&blk.FeatureFlush != 0
}

// field is the present value of writeback. Without CONFIG_WCE it means nothing to the
// driver, and is what the next one will find.
func (c *writeCache) field() bool {
	switch {
	case c.written != notWritten:
		return c.written == writtenOn
	case c.features&blk.FeatureConfigWCE != 0 && !c.flushes():
		return false
	}
	return !c.now.Off
}

// update brings off up to date with the rest.
func (c *writeCache) update() {
	on := c.negotiated && c.field()
	if c.features&blk.FeatureConfigWCE != 0 {
		on = on && !c.frontendsOff
	} else {
		on = on && !c.now.Off && c.flushes() // not this driver's to switch on
	}
	c.off.Store(!on)
}
