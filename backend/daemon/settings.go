package daemon

import (
	"fmt"
	"time"

	"cowblk/backend"
	"cowblk/backend/control"
)

// SetArgs are the arguments of cow-set. Settings that are not named stay.
type SetArgs struct {
	Disk       string    `json:"disk,omitempty"` // of write-cache, writeback-without-flush and poll-microseconds; empty: every disk
	WriteCache *bool     `json:"write-cache,omitempty"`
	NoFlush    *bool     `json:"writeback-without-flush,omitempty"` // see backend.DeviceOptions
	Poll       *float64  `json:"poll-microseconds,omitempty"`       // 0: off
	PromoteOn  *[]string `json:"promote-on,omitempty"`              // replaces the list; empty: none
	Keep       *int      `json:"keep,omitempty"`                    // 0: no limit
	Interval   *float64  `json:"promote-min-interval,omitempty"`    // seconds
	SpaceLow   *string   `json:"space-low,omitempty"`               // see ParseThreshold
	OnENOSPC   *string   `json:"on-enospc,omitempty"`               // see ENOSPCPolicy
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

// DiskSettings are the settings of one disk.
type DiskSettings struct {
	Disk       string        `json:"disk"`
	WriteCache bool          `json:"write-cache"`                       // as the next driver finds it
	Cache      backend.Cache `json:"cache"`                             // likewise
	NoFlush    bool          `json:"writeback-without-flush,omitempty"` // likewise; see DeviceOptions
	Poll       float64       `json:"poll-microseconds"`
}

// maxInterval bounds times that are given in seconds.
const maxInterval = 365 * 24 * time.Hour

// set changes all settings that are named, or none if it returns an error.
func (d *Daemon) set(a SetArgs) (*Settings, error) {
	exports := d.snapshot()
	if a.Disk != "" {
		if a.WriteCache == nil && a.NoFlush == nil && a.Poll == nil {
			return nil, fmt.Errorf("disk %q: only write-cache, writeback-without-flush and poll-microseconds are a disk's own settings; the others are the process's: leave \"disk\" out", a.Disk)
		}
		var err error
		if exports, err = d.named([]string{a.Disk}); err != nil {
			return nil, err
		}
	}
	var events []string
	if a.PromoteOn != nil {
		var err error
		if events, err = HookEvents(*a.PromoteOn); err != nil {
			return nil, err
		}
		if len(events) > 0 && d.hooks.address == nil {
			return nil, &control.Error{Class: control.DeviceNotActive,
				Desc: "promote-on: this process has no connection to QEMU's monitor: serve with --qmp unix:PATH"}
		}
	}
	interval := time.Duration(0)
	if a.Interval != nil {
		if !(*a.Interval > 0 && *a.Interval <= maxInterval.Seconds()) {
			return nil, fmt.Errorf("promote-min-interval %v: expected seconds, more than 0", *a.Interval)
		}
		interval = time.Duration(*a.Interval * float64(time.Second))
	}
	poll := time.Duration(0)
	if a.Poll != nil {
		if !(*a.Poll >= 0 && *a.Poll <= float64(backend.MaxPoll.Microseconds())) {
			return nil, fmt.Errorf("poll-microseconds %v: expected a number from 0, which is off, to %d", *a.Poll, backend.MaxPoll.Microseconds())
		}
		poll = time.Duration(*a.Poll * float64(time.Microsecond))
	}
	if a.Keep != nil && *a.Keep < 0 {
		return nil, fmt.Errorf("keep %d: expected a number of tags, 0 for any", *a.Keep)
	}
	var policy ENOSPCPolicy
	if a.OnENOSPC != nil {
		var err error
		if policy, err = ParseENOSPCPolicy(*a.OnENOSPC); err != nil {
			return nil, fmt.Errorf("on-enospc %w", err)
		}
	}
	caches := make([]backend.WriteCacheSetting, len(exports))
	for i, e := range exports {
		caches[i] = e.dev.WriteCache()
		if a.WriteCache != nil {
			caches[i].Off = !*a.WriteCache
		}
		if a.NoFlush != nil {
			caches[i].WithoutFlush = *a.NoFlush
		}
		if err := caches[i].Check(); err != nil {
			return nil, fmt.Errorf("disk %q: %w: switch one of them off", e.dev.Name(), err)
		}
	}
	if a.SpaceLow != nil {
		limit, err := ParseThreshold(*a.SpaceLow)
		if err != nil {
			return nil, fmt.Errorf("space-low: %w", err)
		}
		d.space.setLimit(limit)
	}
	if policy != "" {
		d.enospc.setPolicy(policy)
	}
	for i, e := range exports {
		e.dev.SetWriteCache(caches[i])
		if a.Poll != nil {
			e.dev.SetPoll(poll)
		}
	}
	d.hooks.change(func(o *HookOptions) {
		if a.PromoteOn != nil {
			o.Events = events
		}
		if a.Keep != nil {
			o.Keep = *a.Keep
		}
		if a.Interval != nil {
			o.Interval = interval
		}
	})
	now := d.settings()
	d.log.Info("settings", "now", fmt.Sprintf("%+v", *now))
	return now, nil
}

func (d *Daemon) settings() *Settings {
	o := d.hooks.settings()
	s := &Settings{PromoteOn: append([]string{}, o.Events...), Keep: o.Keep, Interval: o.Interval.Seconds(), SpaceLow: d.space.threshold().String(), OnENOSPC: d.enospc.currentPolicy()}
	if o.QMP != nil {
		s.QMP = o.QMP.String()
	}
	for _, e := range d.snapshot() {
		cache, poll := e.dev.WriteCache(), e.dev.Poll()
		s.Disks = append(s.Disks, DiskSettings{
			Disk: e.dev.Name(), WriteCache: !cache.Off, Cache: backend.Cache{WriteThrough: cache.Off, Direct: e.dev.Direct()},
			NoFlush: cache.WithoutFlush, Poll: float64(poll) / float64(time.Microsecond),
		})
	}
	return s
}
