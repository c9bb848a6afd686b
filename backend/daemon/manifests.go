package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"cowblk/backend/qmp"
	"cowblk/cow/store"
)

// manifests are the manifests of the served disks, as they are in the store. The process holds the
// lock of each disk.
type manifests struct {
	store *store.Store

	mu     sync.Mutex
	byDisk map[string]*store.Manifest
}

// Prepare makes new, empty heads for the disks. They are durable, open for writing, and not named
// by any manifest. An empty tag stands for the time. The caller calls set after it has swapped.
func (n *manifests) Prepare(ctx context.Context, disks []string, tag string) (*store.Pending,
	error) {
	all, err := n.of(disks)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if err := n.store.CheckOpenFiles(m); err != nil {
			return nil, ExplainLimits(fmt.Errorf("promote: %w", err))
		}
	}
	p, err := n.store.PreparePromotion(ctx, all, tag)
	return p, ExplainLimits(err)
}

func (n *manifests) of(disks []string) (all []*store.Manifest, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, name := range disks {
		m, ok := n.byDisk[name]
		if !ok {
			return nil, fmt.Errorf("disk %q does not belong to store %s", name, n.store.Dir())
		}
		all = append(all, m)
	}
	return all, nil
}

func (n *manifests) set(all ...*store.Manifest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range all {
		n.byDisk[m.Name] = m
	}
}

// SetQuiesceRecord durably records that a guest of the disks is being quiesced, so that the next
// process that serves one of them thaws the guest if this process is killed; nil removes the
// record.
func (n *manifests) SetQuiesceRecord(disks []string, spec *qmp.Spec) error {
	if spec == nil {
		var errs []error
		for _, name := range disks {
			errs = append(errs, n.store.SetQuiesceRecord(name, nil))
		}
		return errors.Join(errs...)
	}
	for i, name := range disks {
		if err := n.store.SetQuiesceRecord(name, spec); err != nil {
			// Nothing is quiesced yet, so no record may remain.
			return errors.Join(err, n.SetQuiesceRecord(disks[:i], nil))
		}
	}
	return nil
}

// Tags returns the tags of the disk's sealed layers.
func (n *manifests) Tags(disk string) (tags []string) {
	all, err := n.of([]string{disk})
	if err != nil {
		return nil
	}
	for _, l := range all[0].Sealed() {
		if l.Tag != "" {
			tags = append(tags, l.Tag)
		}
	}
	return tags
}

// Data returns the path of the data of the disk's head; empty: there is no such disk.
func (n *manifests) Data(disk string) string {
	all, err := n.of([]string{disk})
	if err != nil {
		return ""
	}
	return n.store.HeadData(all[0])
}
