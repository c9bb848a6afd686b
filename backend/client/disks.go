package client

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/cow/store"
)

// QueryTimeout bounds the wait for a daemon's answer to a query.
const QueryTimeout = 5 * time.Second

// maxQueries bounds the number of concurrent queries.
const maxQueries = 32

// UpdateUsage replaces the usage of served heads by the answers of their daemons. It takes at most
// QueryTimeout in all. If a daemon does not answer, the usage from the files stays.
func UpdateUsage(ctx context.Context, st *store.Store, nodes []*store.Node) {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	byControl := map[string][]*store.Node{}
	for _, n := range nodes {
		if n.Usage != nil && n.Serving != nil && n.Serving.Control != "" {
			byControl[n.Serving.Control] = append(byControl[n.Serving.Control], n)
		}
	}
	semaphore := make(chan struct{}, maxQueries)
	var queries sync.WaitGroup
	for path, served := range byControl {
		queries.Go(func() {
			select {
			case semaphore <- struct{}{}:
				defer func() { <-semaphore }()
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
						n.Usage.SetServed(d.HeadBlocks, d.BlockSize)
					}
				}
			}
		})
	}
	queries.Wait()
}

// queryDisks returns the disks of the store that one daemon serves.
func queryDisks(ctx context.Context, st *store.Store, path string) ([]daemon.DiskInfo, error) {
	limit := QueryTimeout
	if end, ok := ctx.Deadline(); ok {
		limit = max(min(limit, time.Until(end)/2), time.Millisecond) // Dial has two steps
	}
	c, err := control.Dial(path, limit)
	if err != nil {
		return nil, err
	}
	var disks []daemon.DiskInfo
	err = c.Run(ctx, "query-cow-disks", daemon.DisksArgs{Store: true}, &disks)
	return slices.DeleteFunc(disks, func(d daemon.DiskInfo) bool {
		return servesOtherStore(st, &d)
	}), err
}

// QueryDisk returns what the daemon of a disk reports about it; nil if no process serves it.
func QueryDisk(ctx context.Context, st *store.Store, v *store.Serving,
	name string) (*daemon.DiskInfo, error) {
	if v == nil || v.Control == "" {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
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
	return nil, nil // no longer served
}
