package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/layer"
	"cowblk/cow/strictjson"
)

// commitFile, in the directory of a transaction, is the commit record of a change of several disks.
// Once it is durable, recovery finishes the change on all of them if the process dies.
const commitFile = "commit.json"

// change is the content of commitFile. The record may outlive the change if its directory cannot be
// removed, so recovery changes only disks that still have their old head.
type change struct {
	From []uuid.UUID `json:"from"` // the disks' heads before
	To   []*Manifest `json:"to"`   // the disks afterwards
}

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
func (s *Store) PreparePromotion(ctx context.Context, disks []*Manifest, tag string) (*Pending, error) {
	dir, err := s.sharedDir() // the open has logged an error
	return s.preparePromotion(ctx, &Pending{s: s, tag: tag, before: disks, sharedDir: dir, sharedErr: err})
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
		return fmt.Errorf("%w for the new head: the disk's head has one: %w", layer.ErrNoShared, p.sharedErr)
	}
	old.Tag, old.Sealed = p.tag, &now
	id, err := p.txn.newHead(&after)
	if err != nil {
		return err
	}
	if err := s.locked(ctx, func() error { return p.txn.moveInHead(m, &after) }); err != nil {
		return err
	}
	params := layer.OpenParams{Write: true, SharedDir: p.sharedDir, Expect: layer.Expect{UUID: id, State: layer.Head}}
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

// disks returns the names of the changed disks. c may be nil.
func (c *change) disks() (names []string) {
	if c != nil {
		for _, m := range c.To {
			names = append(names, m.Name)
		}
	}
	return names
}

// rollForward finishes the change of several disks that a dead process has committed. c may be nil.
// It skips a disk with a damaged manifest, and the returned error concerns that disk. Any other
// error concerns all disks of the change. The caller holds the store's lock.
func (s *Store) rollForward(dir string, c *change) error {
	if c == nil {
		return nil
	}
	damaged := &unfinishedError{}
	for i, m := range c.To {
		now, err := s.Disk(m.Name)
		if errors.Is(err, ErrNotFound) {
			exists, serr := s.exists(s.path(disksDir, m.Name))
			if serr == nil && !exists {
				continue
			}
			err = errors.Join(err, serr)
		}
		if err != nil && isDamage(err) {
			damaged.disks, damaged.err = append(damaged.disks, m.Name), errors.Join(damaged.err, err)
			continue
		}
		if err != nil {
			return &unfinishedError{disks: c.disks(), err: err}
		}
		if now.Head().UUID != c.From[i] {
			continue // finished, or changed again
		}
		if err := s.finishDisk(dir, i, m); err != nil {
			return &unfinishedError{disks: c.disks(), err: err}
		}
		s.log.Info("finished an interrupted change of several disks", "disk", m.Name)
	}
	if damaged.err != nil {
		return damaged
	}
	return nil
}

// finishDisk installs the manifest of disk i of a change. It renames the staged file of the dead
// process if there is one, which needs no space. The directory may have staged files of both
// directions.
func (s *Store) finishDisk(dir string, i int, m *Manifest) error {
	to := s.path(disksDir, m.Name, diskFile)
	want, err := document(m)
	if err != nil {
		return err
	}
	for _, suffix := range []string{stagedAfter, stagedBefore} {
		from := filepath.Join(dir, strconv.Itoa(i)+suffix)
		if staged, err := s.fs.ReadFile(from); err != nil || !bytes.Equal(staged, want) {
			continue
		}
		if err := s.fs.Rename(from, to); err != nil {
			return err
		}
		return s.fs.SyncDir(filepath.Dir(to))
	}
	return s.writeDocument(to, m)
}

// readChange reads the commit record of a transaction; nil: none.
func (s *Store) readChange(dir string) (*change, error) {
	path := filepath.Join(dir, commitFile)
	data, err := s.readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c := new(change)
	if err := c.decode(data); err != nil {
		return nil, refused(path, "record of a change of several disks",
			"a document of the form in FORMAT.md", err.Error(),
			"the intended change is unknown: compare the tags of the disks, then move the directory of the record out of the store")
	}
	return c, nil
}

// decode decodes a commit record and checks its manifests.
func (c *change) decode(data []byte) error {
	if err := strictjson.Decode(data, c, strictjson.Options{}); err != nil {
		return err
	}
	if len(c.From) != len(c.To) {
		return fmt.Errorf("%d heads for %d disks", len(c.From), len(c.To))
	}
	for i, m := range c.To {
		if m == nil || m.Version != formatVersion {
			return fmt.Errorf("disk %d: expected a manifest of version %d", i, formatVersion)
		}
		if err := CheckName("disk", m.Name); err != nil {
			return err
		}
		if err := m.check(m.Name); err != nil {
			return fmt.Errorf("disk %q: %w", m.Name, err)
		}
	}
	return nil
}
