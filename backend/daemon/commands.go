package daemon

import (
	"context"
	"encoding/json"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/backend/takeover"
)

// DiskInfo is one served disk in the answer to query-cow-disks.
type DiskInfo struct {
	Name       string        `json:"name"`
	Store      string        `json:"store,omitempty"`     // its directory; see DisksArgs
	Size       int64         `json:"size"`                // bytes
	BlockSize  int           `json:"block-size"`          // bytes
	Depth      int           `json:"depth"`               // layers, including the head
	ReadOnly   bool          `json:"read-only"`           // for the guest
	WriteCache bool          `json:"write-cache"`         // false: completed writes are durable
	Cache      backend.Cache `json:"cache"`               // write cache and use of the page cache
	Connected  bool          `json:"connected"`           // a front-end is connected
	Sessions   uint64        `json:"sessions"`            // number of front-ends so far
	FrontEnd   *FrontEnd     `json:"front-end,omitempty"` // the connected one
	Waiting    *FrontEnd     `json:"waiting,omitempty"`   // waits for the connected one to leave
	HeadBlocks uint64        `json:"head-blocks"`         // blocks that the head owns
	IndexBytes int64         `json:"index-bytes"`         // memory of the block index
	// MappingBytes is the memory of page tables and residency marks of the disk's files, at most.
	MappingBytes int64 `json:"mapping-bytes"`
	Parked       int   `json:"parked"` // requests that wait for space
}

// DisksArgs are the arguments of query-cow-disks.
type DisksArgs struct {
	Store bool `json:"store,omitempty"` // return the store of each disk; earlier versions do not
}

// DiskStats is one disk's counters in the answer to query-cow-stats.
type DiskStats struct {
	Name string `json:"name"`
	backend.Stats
}

// diskArgs are the arguments of commands about one disk.
type diskArgs struct {
	Disk string `json:"disk"`
}

func (d *Daemon) registerCommands(s *control.Server) {
	s.Register("query-cow-disks", control.Typed(d.queryDisks))
	s.Register("query-cow-stats", control.Typed(d.queryStats))
	s.Register("query-cow-space", control.Typed(func(context.Context, struct{}) (any, error) {
		return d.space.query(), nil
	}))
	s.RegisterChange("cow-promote", control.Typed(d.promoteCommand))
	s.RegisterChange("cow-set", control.Typed(func(_ context.Context, a SetArgs) (any, error) {
		return d.set(a)
	}))
	s.RegisterChange("cow-resume", control.Typed(func(_ context.Context, a diskArgs) (any, error) {
		return nil, d.space.resume(a.Disk)
	}))
	s.RegisterChange("cow-forget-guest", control.Typed(d.forgetGuest))
	s.RegisterConn(takeover.Command, d.serveTakeover)
	s.RegisterChange("cow-attach", control.Typed(d.attach))
	s.RegisterChange("cow-detach", control.Typed(d.detach))
	s.RegisterChange("quit", func(context.Context, json.RawMessage) (any, error) {
		d.quit()
		return nil, nil
	})
}

func (d *Daemon) queryDisks(_ context.Context, o DisksArgs) (any, error) {
	infos := []DiskInfo{}
	for _, e := range d.snapshot() {
		info := e.info()
		if o.Store {
			info.Store = d.opts.Store.Dir()
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// queryStats returns the counters of one disk, or of all if none is named.
func (d *Daemon) queryStats(_ context.Context, only diskArgs) (any, error) {
	exports := d.snapshot()
	if only.Disk != "" {
		var err error
		if exports, err = d.named([]string{only.Disk}); err != nil {
			return nil, err
		}
	}
	stats := []DiskStats{}
	for _, e := range exports {
		stats = append(stats, DiskStats{e.dev.Name(), e.dev.Stats()})
	}
	return stats, nil
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
		Name:         e.dev.Name(),
		Size:         disk.Size(),
		BlockSize:    disk.BlockSize(),
		Depth:        disk.Depth(),
		ReadOnly:     e.dev.ReadOnly(),
		WriteCache:   on,
		Cache:        backend.Cache{WriteThrough: !on, Direct: e.dev.Direct()},
		Connected:    now,
		Sessions:     sessions,
		FrontEnd:     holder,
		Waiting:      waiter,
		HeadBlocks:   stats.HeadBlocks,
		IndexBytes:   stats.IndexBytes,
		MappingBytes: stats.MappingBytes,
		Parked:       e.dev.Parked(),
	}
}
