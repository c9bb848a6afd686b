package main

import (
	"context"
	"fmt"
	"time"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/cow/store"
)

// askLimit bounds how long a command waits for a daemon that only has to say how things are.
const askLimit = 5 * time.Second

// live asks the process that serves a disk about it; nil if no process does.
func live(ctx context.Context, v *store.Serving, name string) (*backend.DiskInfo, error) {
	if v == nil || v.Control == "" {
		return nil, nil
	}
	c, err := control.Dial(v.Control, askLimit)
	if err != nil {
		return nil, fmt.Errorf("disk %q: %s, which does not answer: %w", name, v, err)
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var disks []backend.DiskInfo
	if err := c.Run(ctx, "query-cow-disks", nil, &disks); err != nil {
		return nil, fmt.Errorf("disk %q: %s: %w", name, v, err)
	}
	for _, d := range disks {
		if d.Name == name {
			return &d, nil
		}
	}
	return nil, nil // it has just stopped serving it
}
