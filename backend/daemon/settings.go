package daemon

import (
	"fmt"
	"time"

	"cowblk/backend"
	"cowblk/backend/control"
)

// SetArgs are the arguments of cow-set. Settings that are not named stay.
type SetArgs struct {
	// Disk has the settings WriteCache, NoFlush and Poll. Empty: every disk.
	Disk       string    `json:"disk,omitempty"`
	WriteCache *bool     `json:"write-cache,omitempty"`
	NoFlush    *bool     `json:"writeback-without-flush,omitempty"` // see backend.DeviceOptions
	Poll       *float64  `json:"poll-microseconds,omitempty"`       // 0: off
	PromoteOn  *[]string `json:"promote-on,omitempty"`              // replaces the list
	Keep       *int      `json:"keep,omitempty"`                    // 0: no limit
	Interval   *float64  `json:"promote-min-interval,omitempty"`    // seconds
	SpaceLow   *string   `json:"space-low,omitempty"`               // see ParseThreshold
	OnENOSPC   *string   `json:"on-enospc,omitempty"`               // see ParseENOSPCPolicy
}

// Settings are the current settings, the answer to cow-set.
type Settings struct {
	Disks     []DiskSettings `json:"disks"`
	QMP       string         `json:"qmp,omitempty"` // monitor of the hooks
	PromoteOn []string       `json:"promote-on"`
	Keep      int            `json:"keep"`
	Interval  float64        `json:"promote-min-interval"` // seconds
	SpaceLow  string         `json:"space-low"`
	OnENOSPC  ENOSPCPolicy   `json:"on-enospc"`
}

// DiskSettings are the settings of one disk. Those of the cache apply to the next driver.
type DiskSettings struct {
	Disk       string        `json:"disk"`
	WriteCache bool          `json:"write-cache"`
	Cache      backend.Cache `json:"cache"`
	NoFlush    bool          `json:"writeback-without-flush,omitempty"` // see DeviceOptions
	Poll       float64       `json:"poll-microseconds"`
}

// maxInterval bounds times that are given in seconds.
const maxInterval = 365 * 24 * time.Hour

// positiveSeconds returns a time that was given in seconds.
func positiveSeconds(name string, s float64) (time.Duration, error) {
	if !(s > 0 && s <= maxInterval.Seconds()) {
		return 0, fmt.Errorf("%s %v: expected seconds, more than 0", name, s)
	}
	return seconds(s), nil
}

// checkedSettings are SetArgs whose values are valid, in the types of their owners.
type checkedSettings struct {
	exports []*Export
	caches  []backend.WriteCacheSetting // of exports
	poll    time.Duration
	hooks   HookOptions
	limit   Threshold
	policy  ENOSPCPolicy
}

// set changes all settings that are named, or none if it returns an error.
func (d *Daemon) set(a SetArgs) (*Settings, error) {
	d.setting.Lock()
	defer d.setting.Unlock()
	c, err := d.checkSettings(&a)
	if err != nil {
		return nil, err
	}
	if a.SpaceLow != nil {
		d.space.setLimit(c.limit)
	}
	if a.OnENOSPC != nil {
		c.policy.warnFormerName(d.log, *a.OnENOSPC)
		d.space.setPolicy(c.policy)
	}
	for i, e := range c.exports {
		e.dev.SetWriteCache(c.caches[i])
		if a.Poll != nil {
			e.dev.SetPoll(c.poll)
		}
	}
	d.hooks.set(c.hooks)
	now := d.settings()
	d.log.Info("settings", "now", fmt.Sprintf("%+v", *now))
	return now, nil
}

func (d *Daemon) checkSettings(a *SetArgs) (c checkedSettings, err error) {
	c.exports, c.hooks = d.snapshot(), d.hooks.settings()
	if a.Disk != "" {
		if a.WriteCache == nil && a.NoFlush == nil && a.Poll == nil {
			return c, fmt.Errorf("disk %q: only write-cache, writeback-without-flush and "+
				"poll-microseconds are a disk's own settings; the others are the process's: "+
				"leave \"disk\" out", a.Disk)
		}
		if c.exports, err = d.named([]string{a.Disk}); err != nil {
			return c, err
		}
	}
	if a.PromoteOn != nil {
		if c.hooks.Events, err = HookEvents(*a.PromoteOn); err != nil {
			return c, err
		}
		if len(c.hooks.Events) > 0 && d.hooks.address == nil {
			return c, &control.Error{Class: control.DeviceNotActive, Desc: "promote-on: " +
				"this process has no connection to QEMU's monitor: serve with --qmp unix:PATH"}
		}
	}
	if a.Interval != nil {
		if c.hooks.Interval, err = positiveSeconds("promote-min-interval",
			*a.Interval); err != nil {
			return c, err
		}
	}
	if a.Poll != nil {
		most := backend.MaxPoll.Microseconds()
		if !(*a.Poll >= 0 && *a.Poll <= float64(most)) {
			return c, fmt.Errorf("poll-microseconds %v: "+
				"expected a number from 0, which is off, to %d", *a.Poll, most)
		}
		c.poll = time.Duration(*a.Poll * float64(time.Microsecond))
	}
	if a.Keep != nil {
		if *a.Keep < 0 {
			return c, fmt.Errorf("keep %d: expected a number of tags, 0 for any", *a.Keep)
		}
		c.hooks.Keep = *a.Keep
	}
	if a.OnENOSPC != nil {
		if c.policy, err = ParseENOSPCPolicy(*a.OnENOSPC); err != nil {
			return c, fmt.Errorf("on-enospc %w", err)
		}
	}
	for _, e := range c.exports {
		cache := e.dev.WriteCache()
		if a.WriteCache != nil {
			cache.Off = !*a.WriteCache
		}
		if a.NoFlush != nil {
			cache.WithoutFlush = *a.NoFlush
		}
		if err := cache.Check(); err != nil {
			return c, fmt.Errorf("disk %q: %w: switch one of them off", e.dev.Name(), err)
		}
		c.caches = append(c.caches, cache)
	}
	if a.SpaceLow != nil {
		if c.limit, err = ParseThreshold(*a.SpaceLow); err != nil {
			return c, fmt.Errorf("space-low: %w", err)
		}
	}
	return c, nil
}

func (d *Daemon) settings() *Settings {
	o := d.hooks.settings()
	limit, policy := d.space.settings()
	s := &Settings{
		PromoteOn: append([]string{}, o.Events...), Keep: o.Keep, Interval: o.Interval.Seconds(),
		SpaceLow: limit.String(), OnENOSPC: policy,
	}
	if o.QMP != nil {
		s.QMP = o.QMP.String()
	}
	for _, e := range d.snapshot() {
		cache, poll := e.dev.WriteCache(), e.dev.Poll()
		s.Disks = append(s.Disks, DiskSettings{
			Disk: e.dev.Name(), WriteCache: !cache.Off, NoFlush: cache.WithoutFlush,
			Cache: backend.Cache{WriteThrough: cache.Off, Direct: e.dev.Direct()},
			Poll:  float64(poll) / float64(time.Microsecond),
		})
	}
	return s
}
