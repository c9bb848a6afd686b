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

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// Promotion is the result of Promote for one disk.
type Promotion struct {
	Disk   string    `json:"disk"`
	Tag    string    `json:"tag"`
	Sealed uuid.UUID `json:"sealed"` // the former head
	Head   uuid.UUID `json:"head"`   // the new head
	Depth  int       `json:"depth"`  // number of layers with the new head
}

// DefaultTag returns the tag of a promotion without a tag: the time.
func DefaultTag(t time.Time) string { return t.UTC().Format("20060102T150405Z") }

// freeTag returns DefaultTag, or the next one that none of the disks has: 20061127T120000Z-2 and so
// on.
func freeTag(disks []*Manifest, t time.Time) string {
	first := DefaultTag(t)
	tag := first
	for n := 2; slices.ContainsFunc(disks, func(m *Manifest) bool { _, err := m.Tagged(tag); return err == nil }); n++ {
		tag = first + "-" + strconv.Itoa(n)
	}
	return tag
}

// Promote seals the heads of disks that nobody has open, tags them and adds a new, empty head: on
// all of them or on none. An empty tag is DefaultTag or the next free one. The new heads and
// manifests are durable before the old heads are sealed. A crash in between leaves an unsealed
// layer below the head, which the next open seals. Errors: ErrNotFound, ErrInUse, ErrExists (the
// tag), ErrRefused.
func (s *Store) Promote(ctx context.Context, names []string, tag string) (done []*Promotion, err error) {
	var disks []*Manifest
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return nil, finding.Invalidf("promote: disk %q is named twice", name)
		}
	}
	for _, name := range names {
		// The open checks the stack, and the close flushes it.
		opened, err := s.OpenDisk(ctx, name, OpenOptions{})
		if err != nil {
			return nil, err
		}
		defer opened.Lock.Unlock()
		if err := opened.Disk.Close(); err != nil {
			return nil, fmt.Errorf("disk %q: %w", name, err)
		}
		disks = append(disks, opened.Manifest)
	}
	p, err := s.preparePromotion(ctx, &Pending{s: s, tag: tag, before: disks})
	if err != nil {
		return nil, err
	}
	defer p.Close(true)
	for _, h := range p.Heads() {
		err = errors.Join(err, h.Close())
	}
	if err == nil {
		err = p.Commit()
	}
	if err != nil {
		return nil, fmt.Errorf("promote: %w", err)
	}
	for _, m := range p.Manifests() {
		old := &m.Layers[len(m.Layers)-2]
		done = append(done, &Promotion{Disk: m.Name, Tag: p.Tag(), Sealed: old.UUID, Head: m.Head().UUID, Depth: len(m.Layers)})
		if serr := s.seal(old, *old.Sealed); serr != nil {
			err = errors.Join(err, fmt.Errorf("promote %q: the tag exists and the disk is intact; the layer could not be sealed, and the next open tries again: %w", m.Name, serr))
		}
	}
	return done, err
}

func (s *Store) seal(l *Layer, now time.Time) error {
	f, err := layer.Open(s.fs, s.paths(l), layer.OpenParams{Write: true, Expect: layer.Expect{UUID: l.UUID, State: layer.Head}})
	if err != nil {
		return err
	}
	return errors.Join(f.Seal(now), f.Close())
}

// The files of a promotion and of its reversal are staged in the transaction before the guest is
// quiesced. From then on the change only renames files, which needs no space, so it can always be
// undone. A file is named after the index of its disk.
const (
	stagedAfter  = ".after"
	stagedBefore = ".before"
)

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

// writeFile durably writes a file in the transaction. Its name is durable after the next sync of
// the directory.
func (tx *txn) writeFile(name string, data []byte, perm os.FileMode) error {
	f, err := tx.s.fs.OpenFile(tx.path(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(data, 0); err == nil {
		err = f.Datasync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
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
		if err := s.fs.Rename(p.txn.path(strconv.Itoa(i)+suffix), s.path(disksDir, m.Name, diskFile)); err != nil {
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
			return nil, errors.Join(fmt.Errorf("%d open files are needed: %w", n, err), r.free(len(r)))
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
