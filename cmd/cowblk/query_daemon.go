package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/cow/store"
)

// queryTimeout bounds how long a command waits for a daemon that only has to say how things are.
const queryTimeout = 5 * time.Second

// maxQueries bounds the processes that are asked at the same time.
const maxQueries = 32

// queryDaemons replaces what the files say of served disks' heads by what the processes say: at most askLimit for all of
// them together. Those that do not answer leave what the files say.
func queryDaemons(ctx context.Context, nodes []*store.Node) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
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
			disks, err := queryDisks(ctx, path)
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
	queries.Wait()
}

// queryDisks asks one process for the disks that it serves.
func queryDisks(ctx context.Context, path string) ([]backend.DiskInfo, error) {
	limit := queryTimeout
	if end, ok := ctx.Deadline(); ok {
		limit = max(min(limit, time.Until(end)/2), time.Millisecond) // Dial takes two steps
	}
	c, err := control.Dial(path, limit)
	if err != nil {
		return nil, err
	}
	var disks []backend.DiskInfo
	err = c.Run(ctx, "query-cow-disks", nil, &disks)
	return disks, err
}

// queryDaemon asks the process that serves a disk about it; nil if no process does.
func queryDaemon(ctx context.Context, v *store.Serving, name string) (*backend.DiskInfo, error) {
	if v == nil || v.Control == "" {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	disks, err := queryDisks(ctx, v.Control)
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
