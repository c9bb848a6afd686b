package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"cowblk/backend/daemon"
	"cowblk/backend/qmp"
	"cowblk/cow/store"
)

// servedManifests implements daemon.Names over a store. The process holds the lock of every disk in
// it.
type servedManifests struct {
	store *store.Store

	mu        sync.Mutex
	manifests map[string]*store.Manifest
}

// Prepare implements daemon.Names.
func (n *servedManifests) Prepare(ctx context.Context, disks []string, tag string) (daemon.Pending, error) {
	n.mu.Lock()
	var manifests []*store.Manifest
	for _, name := range disks {
		m, ok := n.manifests[name]
		if !ok {
			n.mu.Unlock()
			return nil, fmt.Errorf("disk %q does not belong to store %s", name, n.store.Dir())
		}
		manifests = append(manifests, m)
	}
	n.mu.Unlock()
	for _, m := range manifests {
		if err := n.store.CheckOpenFiles(m); err != nil {
			return nil, explainLimits(fmt.Errorf("promote: %w", err))
		}
	}
	p, err := n.store.PreparePromotion(ctx, manifests, tag)
	if err != nil {
		return nil, explainLimits(err)
	}
	return &pendingManifests{Pending: p, served: n, old: manifests}, nil
}

// Note implements daemon.Names.
func (n *servedManifests) Note(disks []string, spec *qmp.Spec) error {
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
			return errors.Join(err, n.Note(disks[:i], nil))
		}
	}
	return nil
}

// Tags implements daemon.Names.
func (n *servedManifests) Tags(disk string) (tags []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m, ok := n.manifests[disk]
	if !ok {
		return nil
	}
	for _, l := range m.Sealed() {
		if l.Tag != "" {
			tags = append(tags, l.Tag)
		}
	}
	return tags
}

// Data implements daemon.Names.
func (n *servedManifests) Data(disk string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	m, ok := n.manifests[disk]
	if !ok {
		return ""
	}
	path := m.Head().Data
	if !filepath.IsAbs(path) {
		path = filepath.Join(n.store.Dir(), path)
	}
	return path
}

// pendingManifests keeps the manifests in memory equal to those in the store.
type pendingManifests struct {
	*store.Pending
	served *servedManifests
	old    []*store.Manifest
}

// Commit implements daemon.Pending.
func (p *pendingManifests) Commit() error {
	err := p.Pending.Commit()
	if err == nil {
		p.served.set(p.Manifests())
	}
	return err
}

// Revert implements daemon.Pending.
func (p *pendingManifests) Revert() error {
	p.served.set(p.old)
	return p.Pending.Revert()
}

func (n *servedManifests) set(manifests []*store.Manifest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range manifests {
		n.manifests[m.Name] = m
	}
}
