package daemon

import (
	"context"
	"encoding/json"
	"fmt"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/backend/takeover"
)

// DiskInfo is one served disk in the answer to query-cow-disks.
type DiskInfo struct {
	Name       string        `json:"name"`
	Store      string        `json:"store,omitempty"`     // directory of its store: see DisksArgs
	Size       int64         `json:"size"`                // bytes
	BlockSize  int           `json:"block-size"`          // bytes
	Depth      int           `json:"depth"`               // layers, including the head
	ReadOnly   bool          `json:"read-only"`           // for the guest
	WriteCache bool          `json:"write-cache"`         // false: every write is durable when it completes
	Cache      backend.Cache `json:"cache"`               // write cache and use of the page cache
	Connected  bool          `json:"connected"`           // a front-end is connected
	Sessions   uint64        `json:"sessions"`            // number of front-ends so far
	FrontEnd   *FrontEnd     `json:"front-end,omitempty"` // the connected one
	Waiting    *FrontEnd     `json:"waiting,omitempty"`   // the one that waits for the connected one to leave
	HeadBlocks uint64        `json:"head-blocks"`         // blocks that the head owns
	IndexBytes int64         `json:"index-bytes"`         // memory of the block index
	Parked     int           `json:"parked"`              // requests that wait for space
}

// DisksArgs are the arguments of query-cow-disks.
type DisksArgs struct {
	Store bool `json:"store,omitempty"` // also return the store of each disk; earlier versions do not
}

// DiskStats is one disk's counters in the answer to query-cow-stats.
type DiskStats struct {
	Name string `json:"name"`
	backend.Stats
}

func (d *Daemon) registerCommands(s *control.Server) {
	s.Register("query-cow-disks", func(_ context.Context, args json.RawMessage) (any, error) {
		var o DisksArgs
		if err := control.Decode(args, &o); err != nil {
			return nil, err
		}
		infos := []DiskInfo{}
		for _, e := range d.snapshot() {
			info := e.info()
			if o.Store {
				info.Store = d.store
			}
			infos = append(infos, info)
		}
		return infos, nil
	})
	s.Register("query-cow-stats", func(_ context.Context, args json.RawMessage) (any, error) {
		var only struct {
			Disk string `json:"disk"`
		}
		if err := control.Decode(args, &only); err != nil {
			return nil, err
		}
		stats := []DiskStats{}
		for _, e := range d.snapshot() {
			if only.Disk == "" || only.Disk == e.dev.Name() {
				stats = append(stats, DiskStats{e.dev.Name(), e.dev.Stats()})
			}
		}
		if only.Disk != "" && len(stats) == 0 {
			return nil, &control.Error{Class: control.DeviceNotFound, Desc: fmt.Sprintf("disk %q is not served by this process", only.Disk)}
		}
		return stats, nil
	})
	s.Register("query-cow-space", func(_ context.Context, args json.RawMessage) (any, error) {
		if err := control.Decode(args, &struct{}{}); err != nil {
			return nil, err
		}
		return d.space.query(), nil
	})
	s.RegisterChange("cow-promote", func(ctx context.Context, args json.RawMessage) (any, error) {
		var a PromoteArgs
		if err := control.Decode(args, &a); err != nil {
			return nil, err
		}
		if err := d.checkReach(ctx, &a.Spec); err != nil {
			return nil, err
		}
		return d.promote(ctx, a, "")
	})
	s.RegisterChange("cow-set", func(_ context.Context, args json.RawMessage) (any, error) {
		var a SetArgs
		if err := control.Decode(args, &a); err != nil {
			return nil, err
		}
		return d.set(a)
	})
	s.RegisterChange("cow-resume", func(_ context.Context, args json.RawMessage) (any, error) {
		disk, err := d.oneDisk(args)
		if err != nil {
			return nil, err
		}
		return nil, d.space.resume(disk)
	})
	s.RegisterChange("cow-forget-guest", func(ctx context.Context, args json.RawMessage) (any, error) {
		disk, err := d.oneDisk(args)
		if err != nil {
			return nil, err
		}
		return nil, d.forgetGuest(ctx, disk)
	})
	s.RegisterConn(takeover.Command, d.handOver)
	s.RegisterChange("cow-attach", d.attach)
	s.RegisterChange("cow-detach", d.detach)
	s.RegisterChange("quit", func(context.Context, json.RawMessage) (any, error) {
		d.quit()
		return nil, nil
	})
}

// oneDisk returns the disk that a command's arguments name. This process serves it.
func (d *Daemon) oneDisk(args json.RawMessage) (string, error) {
	var a struct {
		Disk string `json:"disk"`
	}
	if err := control.Decode(args, &a); err != nil {
		return "", err
	}
	_, err := d.named([]string{a.Disk})
	return a.Disk, err
}

func (d *Daemon) snapshot() []*Export {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*Export(nil), d.exports...)
}

func (e *Export) info() DiskInfo {
	now, sessions := e.Connected()
	disk := e.dev.Disk()
	stats := disk.Stats()
	on := e.dev.WriteCacheOn()
	holder, waiter := e.frontEnds()
	return DiskInfo{
		Name:       e.dev.Name(),
		Size:       disk.Size(),
		BlockSize:  disk.BlockSize(),
		Depth:      disk.Depth(),
		ReadOnly:   e.dev.ReadOnly(),
		WriteCache: on,
		Cache:      backend.Cache{WriteThrough: !on, Direct: e.dev.Direct()},
		Connected:  now,
		Sessions:   sessions,
		FrontEnd:   holder,
		Waiting:    waiter,
		HeadBlocks: stats.HeadBlocks,
		IndexBytes: stats.IndexBytes,
		Parked:     e.dev.Parked(),
	}
}
