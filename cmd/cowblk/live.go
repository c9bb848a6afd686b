package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/cow/store"
)

// askLimit bounds how long a command waits for a daemon that only has to say how things are.
const askLimit = 5 * time.Second

// askAtOnce bounds the processes that are asked at the same time.
const askAtOnce = 32

// askServing replaces what the files say of served disks' heads by what the processes say: at most askLimit for all of
// them together. Those that do not answer leave what the files say.
func askServing(ctx context.Context, st *store.Store, nodes []*store.Node) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	byControl := map[string][]*store.Node{}
	for _, n := range nodes {
		if n.Usage != nil && n.Serving != nil && n.Serving.Control != "" {
			byControl[n.Serving.Control] = append(byControl[n.Serving.Control], n)
		}
	}
	room := make(chan struct{}, askAtOnce)
	var asking sync.WaitGroup
	for path, served := range byControl {
		asking.Go(func() {
			select {
			case room <- struct{}{}:
				defer func() { <-room }()
			case <-ctx.Done():
				return
			}
			disks, err := queryDisks(ctx, st, path)
			if err != nil {
				return
			}
			for _, n := range served {
				for _, d := range disks {
					if d.Name == n.Name && d.BlockSize > 0 {
						n.Usage.Serve(d.HeadBlocks, d.BlockSize)
					}
				}
			}
		})
	}
	asking.Wait()
}

// queryDisks asks one process for the disks of the store that it serves.
func queryDisks(ctx context.Context, st *store.Store, path string) ([]backend.DiskInfo, error) {
	limit := askLimit
	if end, ok := ctx.Deadline(); ok {
		limit = max(min(limit, time.Until(end)/2), time.Millisecond) // Dial takes two steps
	}
	c, err := control.Dial(path, limit)
	if err != nil {
		return nil, err
	}
	var disks []backend.DiskInfo
	err = c.Run(ctx, "query-cow-disks", backend.DisksArgs{Store: true}, &disks)
	return slices.DeleteFunc(disks, func(d backend.DiskInfo) bool { return otherStore(st, &d) }), err
}

// live asks the process that serves a disk about it; nil if no process does.
func live(ctx context.Context, st *store.Store, v *store.Serving, name string) (*backend.DiskInfo, error) {
	if v == nil || v.Control == "" {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	disks, err := queryDisks(ctx, st, v.Control)
	if err != nil {
		return nil, fmt.Errorf("disk %q: %s, which does not answer: %w", name, v, err)
	}
	for _, d := range disks {
		if d.Name == name {
			return &d, nil
		}
	}
	return nil, nil // it has just stopped serving it
}
