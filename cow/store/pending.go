package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// Pending is a prepared promotion of one or more disks. The new heads are durable, and no manifest
// names them yet. The caller holds the locks of the disks.
type Pending struct {
	s         *Store
	txn       *txn
	tag       string
	sharedDir string // for the shared maps of the new heads; empty: none
	sharedErr error  // why sharedDir is empty
	before    []*Manifest
	after     []*Manifest
	heads     []*layer.Layer
	fds       fdReserve
	inDoubt   bool // Commit and Revert both failed
}

// PreparePromotion creates a new head for each of the disks and opens it for writing. The former
// heads will get the tag; empty: DefaultTag, or the next free one. The caller must call Close.
// Errors: ErrInvalid, ErrExists (the tag), layer.ErrNoShared (a head has a shared map, and there is
// no directory for that of the new head).
func (s *Store) PreparePromotion(ctx context.Context, disks []*Manifest, tag string) (*Pending,
	error) {
	dir, err := s.sharedDir() // the open has logged an error
	return s.preparePromotion(ctx, &Pending{s: s, tag: tag, before: disks, sharedDir: dir,
		sharedErr: err})
}

// preparePromotion creates the new heads of p. Its other fields are set.
func (s *Store) preparePromotion(ctx context.Context, p *Pending) (_ *Pending, err error) {
	defer func() { err = s.adviseNoSpace(err) }()
	now := s.now().UTC()
	if p.tag == "" {
		p.tag = freeTag(p.before, now)
	}
	if err := CheckName("tag", p.tag); err != nil {
		return nil, err
	}
	disks := p.before
	for _, m := range disks {
		if _, err := m.Tagged(p.tag); err == nil {
			return nil, fmt.Errorf("tag %s@%s %w: choose another", m.Name, p.tag, ErrExists)
		}
	}
	if p.fds, err = s.reserveFDs(fdsTransient + fdsPerDisk*len(disks)); err != nil {
		return nil, fmt.Errorf("promote: %w", err)
	}
	// The others are for Revert.
	if err := p.fds.free(fdsPerDisk * len(disks)); err != nil {
		return nil, err
	}
	if p.txn, err = s.begin(ctx); err != nil {
		return nil, errors.Join(err, p.fds.free(len(p.fds)))
	}
	for _, m := range disks {
		if err := p.add(ctx, m, now); err != nil {
			p.Close(false)
			return nil, fmt.Errorf("promote %q: %w", m.Name, err)
		}
	}
	if err := p.stage(); err != nil {
		p.Close(false)
		return nil, fmt.Errorf("promote %q: %w", disks[0].Name, err)
	}
	return p, nil
}

// add creates a new head for m in layers/ and opens it there.
func (p *Pending) add(ctx context.Context, m *Manifest, now time.Time) error {
	s := p.s
	after := *m
	after.Layers = slices.Clone(m.Layers)
	old := after.Head()
	// If unflushed writes survive a kill on the current head, they must on the new one.
	h, err := layer.ReadHeader(s.fs, s.paths(old).Map)
	if err != nil {
		return Classify(err)
	}
	hasShared := h.Generation != 0
	if hasShared && p.sharedDir == "" {
		return fmt.Errorf("%w for the new head: the disk's head has one: %w", layer.ErrNoShared,
			p.sharedErr)
	}
	old.Tag, old.Sealed = p.tag, &now
	id, err := p.txn.newHead(&after)
	if err != nil {
		return err
	}
	if err := s.locked(ctx, func() error { return p.txn.moveInHead(m, &after) }); err != nil {
		return err
	}
	params := layer.OpenParams{Write: true, SharedDir: p.sharedDir, Expect: layer.Expect{UUID: id,
		State: layer.Head}}
	head, err := layer.Open(s.fs, s.paths(after.Head()), params)
	if !hasShared && errors.Is(err, layer.ErrNoShared) && errors.Is(err, errors.ErrUnsupported) {
		params.SharedDir = "" // as the current head
		head, err = layer.Open(s.fs, s.paths(after.Head()), params)
	}
	if err != nil {
		return Classify(err)
	}
	p.heads = append(p.heads, head)
	p.after = append(p.after, &after)
	return nil
}

// Tag returns the tag of the former heads.
func (p *Pending) Tag() string { return p.tag }

// Heads returns the new heads in the order of the disks.
func (p *Pending) Heads() []*layer.Layer { return p.heads }

// Manifests returns the manifests that Commit installs, in the order of the disks.
func (p *Pending) Manifests() []*Manifest { return p.after }

// Commit durably adds the new heads and the tag to all disks or, after an error, to none, even if
// the process is killed. If it fails and the old manifests cannot be restored, the next process
// that opens one of the disks finishes or undoes the change; until it can, the disks are refused.
//
// Commit does not take the store's lock: other processes may hold it while the guest is quiesced.
// The locks of the disks, which the caller holds, and of the transaction are enough. Nobody else
// writes these manifests, and each is replaced by one rename. A reader finds the same layers before
// and after, except for the new head, which is in the journal.
func (p *Pending) Commit() error {
	if err := p.replace(stagedAfter); err != nil {
		return errors.Join(err, p.Revert())
	}
	p.txn.committed = true
	return nil
}

// Revert durably restores the old manifests. It is called once.
func (p *Pending) Revert() error {
	err := p.replace(stagedBefore)
	p.txn.committed = false
	if err != nil {
		p.inDoubt = true
		err = fmt.Errorf("the disks' manifests could not be put back; the next start finishes or undoes the change: %w", err)
	}
	return err
}

// replace renames the staged manifests with the reserved file descriptors.
func (p *Pending) replace(suffix string) error {
	_ = p.fds.free(len(p.fds))
	return p.renameStaged(suffix)
}

// Close ends the promotion and removes what was not committed. swapped: the heads belong to their
// cow.Disk and stay open.
func (p *Pending) Close(swapped bool) {
	_ = p.fds.free(len(p.fds))
	if !swapped {
		for _, h := range p.heads {
			// Another process may find the change in doubt and use the new head.
			release := h.AbandonNew
			if p.inDoubt {
				release = h.Abandon
			}
			if err := release(); err != nil {
				p.s.log.Warn("an unused new head could not be closed", "err", err)
			}
		}
	}
	if p.inDoubt {
		// Keep the record. The lock of the transaction, held until this process ends, prevents
		// recovery while the disks are open here.
		return
	}
	p.txn.close()
}

// stage writes the old and the new manifests, and for several disks the commit records of both
// directions.
func (p *Pending) stage() error {
	for _, c := range []struct {
		from, to []*Manifest
		suffix   string
	}{{p.before, p.after, stagedAfter}, {p.after, p.before, stagedBefore}} {
		record := change{To: c.to}
		for i, m := range c.to {
			record.From = append(record.From, c.from[i].Head().UUID)
			data, err := document(m)
			if err == nil {
				err = p.txn.writeFile(strconv.Itoa(i)+c.suffix, data, filePerm)
			}
			if err != nil {
				return err
			}
		}
		if len(c.to) == 1 {
			continue // one rename is atomic
		}
		data, err := json.Marshal(record)
		if err == nil {
			err = p.txn.writeFile(commitFile+c.suffix, data, filePerm)
		}
		if err != nil {
			return err
		}
	}
	return p.s.fs.SyncDir(p.txn.dir)
}

// renameStaged durably renames the files staged with this suffix to their places.
func (p *Pending) renameStaged(suffix string) error {
	s := p.s
	if len(p.after) > 1 {
		if err := s.fs.Rename(p.txn.path(commitFile+suffix), p.txn.path(commitFile)); err != nil {
			return err
		}
		if err := s.fs.SyncDir(p.txn.dir); err != nil {
			return err
		}
	}
	for i, m := range p.after {
		if err := s.fs.Rename(p.txn.path(strconv.Itoa(i)+suffix), s.path(disksDir, m.Name,
			diskFile)); err != nil {
			return err
		}
		if err := s.fs.SyncDir(s.path(disksDir, m.Name)); err != nil {
			return err
		}
	}
	return nil
}

// File descriptors that a promotion needs. It must not run out of them half way, when it can
// neither finish nor undo the change.
const (
	fdsPerDisk   = 8 // the new head, and the former head for the seal, each also for direct I/O
	fdsTransient = 4 // locks, directories and files that are open for a moment
)

// fdReserve is a set of files that are open only to reserve their descriptors.
type fdReserve []vfs.File

// reserveFDs opens n files or none.
func (s *Store) reserveFDs(n int) (r fdReserve, err error) {
	for range n {
		f, err := s.fs.OpenFile(s.path(lockFile), os.O_RDONLY, 0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%d open files are needed: %w", n, err),
				r.free(len(r)))
		}
		r = append(r, f)
	}
	return r, nil
}

// free closes n of the files.
func (r *fdReserve) free(n int) error {
	var errs []error
	for _, f := range (*r)[len(*r)-n:] {
		errs = append(errs, f.Close())
	}
	*r = (*r)[:len(*r)-n]
	return errors.Join(errs...)
}
