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

// commitFile, in a work directory, holds a change of several disks. It is what makes the change happen to all of them or
// to none: once it is durable, whoever finds its process gone writes the manifests that are missing.
const commitFile = "commit.json"

// change is the content of commitFile. It may outlive the change (a directory that could not be removed), so it is
// carried out only on a disk whose head is still the one it began with.
type change struct {
	From []uuid.UUID `json:"from"` // the disks' heads before
	To   []*Manifest `json:"to"`   // the disks afterwards
}

// Pending is a promotion of one or more disks that is prepared: the new heads are there, durable, and nothing names
// them yet. The caller holds the locks of the disks.
type Pending struct {
	s         *Store
	txn       *txn
	tag       string
	sharedDir string // for the shared maps of the new heads; empty: none
	sharedErr error  // why there is none
	before    []*Manifest
	after     []*Manifest
	heads     []*layer.Layer
	fds       fdReserve
	inDoubt   bool // neither Commit nor Revert came to its end
}

// PreparePromotion makes a new head for each disk, whose manifests are given, and opens it for writing. The disks' heads
// will have the tag (DefaultTag if empty, or the next free one). Close must follow. Errors: ErrInvalid, ErrExists (the tag), layer.ErrNoShared
// (a head has a shared map, and the new one would have none).
func (s *Store) PreparePromotion(ctx context.Context, disks []*Manifest, tag string) (*Pending, error) {
	dir, err := s.sharedDir() // none: whoever opened the disks has said so
	return s.preparePromotion(ctx, &Pending{s: s, tag: tag, before: disks, sharedDir: dir, sharedErr: err})
}

// preparePromotion makes the new heads of p, which says everything else.
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
	// The last ones are for the way back.
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

// add puts a new head for m among the store's layers, where it stays if it is committed, and opens it there.
func (p *Pending) add(ctx context.Context, m *Manifest, now time.Time) error {
	s := p.s
	after := *m
	after.Layers = slices.Clone(m.Layers)
	old := after.Head()
	// A guest whose writes survive this process must not lose that unnoticed.
	h, err := layer.ReadHeader(s.fs, s.paths(old).Map)
	if err != nil {
		return classify(err)
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
		params.SharedDir = "" // as for the head before it
		head, err = layer.Open(s.fs, s.paths(after.Head()), params)
	}
	if err != nil {
		return classify(err)
	}
	p.heads = append(p.heads, head)
	p.after = append(p.after, &after)
	return nil
}

// Tag is the tag that the former heads get.
func (p *Pending) Tag() string { return p.tag }

// Heads are the new heads, in the order of the disks.
func (p *Pending) Heads() []*layer.Layer { return p.heads }

// Manifests are those that Commit puts in place, in the order of the disks.
func (p *Pending) Manifests() []*Manifest { return p.after }

// Commit makes the new heads and the tag part of every disk, durably: of all of them or, after an error, of none; also
// when the process is killed at any moment. If the manifests from before cannot be put back after an error, the disks
// are brought to one or the other state by the next process that opens one of them, or are refused until they can be.
//
// It does not take the store's lock, for which others may be waiting while a guest stands still. The locks of the disks,
// which the caller holds, and that of the work directory do: nobody else writes these manifests, each is replaced by one
// rename, and who reads one before or after finds the same layers in it, but for the new head, which is in the journal of
// the work.
func (p *Pending) Commit() error {
	if err := p.replace(stagedAfter); err != nil {
		return errors.Join(err, p.Revert())
	}
	p.txn.committed = true
	return nil
}

// Revert puts the manifests from before back, durably. It is called once.
func (p *Pending) Revert() error {
	err := p.replace(stagedBefore)
	p.txn.committed = false
	if err != nil {
		p.inDoubt = true
		err = fmt.Errorf("the disks' manifests could not be put back; the next start finishes or undoes the change: %w", err)
	}
	return err
}

// replace is put with the file descriptors that were kept for it. Once begun, it goes to its end.
func (p *Pending) replace(suffix string) error {
	_ = p.fds.free(len(p.fds))
	return p.renameStaged(suffix)
}

// Close ends the promotion. Heads that a cow.Disk has taken over stay open: swapped says so. What was not committed is
// removed.
func (p *Pending) Close(swapped bool) {
	_ = p.fds.free(len(p.fds))
	if !swapped {
		for _, h := range p.heads {
			// The next process may find the change half made, and the new head in use.
			give := h.AbandonNew
			if p.inDoubt {
				give = h.Abandon
			}
			if err := give(); err != nil {
				p.s.log.Warn("a new head that is not needed could not be closed", "err", err)
			}
		}
	}
	if p.inDoubt {
		// The record is still needed. The work's lock, held until this process ends, keeps others from acting on it
		// while the disks are open here.
		return
	}
	p.txn.close()
}

// disks are the names of those that the change is about. There may be no change.
func (c *change) disks() (names []string) {
	if c != nil {
		for _, m := range c.To {
			names = append(names, m.Name)
		}
	}
	return names
}

// rollForward finishes the change of several disks of a work directory, if there is one, whose process died after it had
// become durable. The store is locked. Of a disk whose manifest cannot be read it is not known what it is about: the
// others are changed, and the error concerns that one. After another error none of the disks is to be believed.
func (s *Store) rollForward(dir string, c *change) error {
	if c == nil {
		return nil
	}
	damaged := &unfinishedError{}
	for i, m := range c.To {
		now, err := s.Disk(m.Name)
		if errors.Is(err, ErrNotFound) {
			there, serr := s.exists(s.path(disksDir, m.Name))
			if serr == nil && !there {
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
			continue // done, or changed again since
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

// finishDisk puts the manifest of disk i of a change in place. What the dead process has staged for that takes no room; it
// may have staged both directions.
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

// readChange reads the commit of a work directory; nil if there is none.
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
		return nil, &Mismatch{
			File: path, What: "record of a change of several disks", Expected: "a document of the form in FORMAT.md", Found: err.Error(),
			Advice: "what was to be done is not known: compare the tags of the disks, then move the directory of the record out of the store",
		}
	}
	return c, nil
}

// decode reads what stage has written, and refuses manifests that no reader would take.
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
