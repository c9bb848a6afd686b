package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"cowblk/cow"
	"cowblk/cow/finding"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// baseSpec cheaply checks that the base of a disk is unchanged and describes it for cow.Open, which
// compares the sampled fingerprint. It accepts a base of the same size and modification time.
// Otherwise it hashes an image again and records the new time if the content is the same, and
// refuses a base in place.
func (s *Store) baseSpec(ctx context.Context, m *Manifest) (*cow.BaseSpec, error) {
	b := m.Base
	if b == nil {
		return nil, nil
	}
	spec := &cow.BaseSpec{Path: b.Path, Offset: b.Offset, Size: b.Size, Fingerprint: b.Fingerprint}
	if b.Image != "" {
		spec.Path = s.ImageData(b.Image)
		return spec, s.checkImage(ctx, m)
	}
	f, err := s.openBase(m, b.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	now, err := f.Identity()
	if err != nil {
		return nil, err
	}
	if sameState(now, *b.Identity) {
		return spec, nil
	}
	if err := checkFingerprint(f, m); err != nil {
		return nil, err
	}
	return nil, stateFinding(b.Path, *b.Identity, now, fmt.Sprintf("The %d KiB that were sampled are the same. If you know that all of it is: %s",
		sampledBytes(b.Size)>>10, s.command("trust-base", m.Name)))
}

// sampledBytes returns the maximum number of bytes that a fingerprint samples; see
// layer.ComputeFingerprint.
func sampledBytes(size int64) int64 { return min(size, 2*64<<10+256*4<<10) }

// sameState compares the fields that a write changes. It ignores device and inode: a store may be
// copied.
func sameState(a, b vfs.Identity) bool {
	return a.Size == b.Size && a.MTime == b.MTime && a.Block == b.Block
}

// stateFinding says how a file differs from its recorded state.
func stateFinding(path string, was, is vfs.Identity, advice string) *finding.Finding {
	switch {
	case was.Block != is.Block:
		kind := map[bool]string{false: "a regular file", true: "a block device"}
		return refused(path, "kind", kind[was.Block], kind[is.Block], advice)
	case was.Size != is.Size:
		return refused(path, "size of the base", quoteBytes(was.Size), quoteBytes(is.Size), advice)
	}
	return refused(path, "modification time of the base", timeText(was.MTime), timeText(is.MTime), advice)
}

func timeText(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }

func (s *Store) openBase(m *Manifest, path string) (vfs.File, error) {
	f, err := vfs.OpenImage(s.fs, path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refused(path, "base of disk "+m.Name,
			"the file that the disk was created on", "no such file",
			"put it back in this place; the disk's layers hold only what differs from it")
	}
	if err != nil {
		return nil, refusedFile("base of disk "+m.Name, path, err)
	}
	return f, nil
}

// checkFingerprint compares the sampled fingerprint of the base with the recorded one.
func checkFingerprint(f vfs.File, m *Manifest) error {
	b := m.Base
	size, err := f.Size()
	if err != nil {
		return err
	}
	advice := "put the original content back; the disk's layers are right only over that"
	if size < b.Offset+b.Size {
		return refused(f.Name(), "size of the base", "at least "+quoteBytes(b.Offset+b.Size),
			quoteBytes(size), advice)
	}
	found, err := layer.ComputeFingerprint(f, b.Offset, b.Size)
	if err != nil {
		return err
	}
	if found != b.Fingerprint {
		return refused(f.Name(), "sampled content of the base",
			"fingerprint "+b.Fingerprint.String(), found.String(), advice)
	}
	return nil
}

// checkImage checks the image that m lies on.
func (s *Store) checkImage(ctx context.Context, m *Manifest) error {
	path := s.ImageData(m.Base.Image)
	img, err := s.Image(m.Base.Image)
	if errors.Is(err, ErrNotFound) {
		return refused(s.path(imagesDir, m.Base.Image), "base of disk "+m.Name, "an image",
			"none",
			adviceNoImage)
	}
	if err != nil {
		return err
	}
	if img.Fingerprint != m.Base.Fingerprint {
		return refused(s.path(imagesDir, m.Base.Image, imageFile),
			"fingerprint of the base of disk "+m.Name, m.Base.Fingerprint.String(),
			img.Fingerprint.String(),
			adviceOtherImage)
	}
	f, err := s.openBase(m, path)
	if err != nil {
		return err
	}
	defer f.Close()
	now, err := f.Identity()
	if err != nil {
		return err
	}
	if err := img.checkSize(path, now); err != nil {
		return err
	}
	if sameState(now, img.Identity) {
		return nil
	}
	s.log.Warn("an image's file differs from its recorded state: checking the whole content", "image", img.Name, "size", img.Size)
	if err := img.compare(ctx, f, func(int64) {}); err != nil {
		return err
	}
	// An optimization: without the record the next open hashes again.
	err = s.locked(ctx, func() error {
		img.Identity = now
		return s.writeDocument(s.path(imagesDir, img.Name, imageFile), img)
	})
	if err != nil {
		s.log.Warn("the image is unchanged, but that could not be recorded", "image", img.Name, "err", err)
	}
	return nil
}

// TrustBase records the current state of a base in place after a check of its sampled fingerprint.
// It hashes an image whose modification time has changed. ErrRefused: the content differs.
func (s *Store) TrustBase(ctx context.Context, name string) (*Manifest, error) {
	lock, err := s.LockDisk(name)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if err := s.recoverFor(ctx, name); err != nil {
		return nil, err
	}
	m, err := s.Disk(name)
	if err != nil {
		return nil, err
	}
	if m.Base == nil {
		return nil, invalidf("disk %q has no base: there is nothing to trust", name)
	}
	if m.Base.Image != "" {
		return m, s.checkImage(ctx, m)
	}
	f, err := s.openBase(m, m.Base.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	now, err := f.Identity()
	if err != nil {
		return nil, err
	}
	if err := checkFingerprint(f, m); err != nil {
		return nil, err
	}
	m.Base.Identity = &now
	return m, s.WithReserve(func() error { // until then the disk cannot be served
		return s.locked(ctx, func() error { return s.writeDocument(s.path(disksDir, name, diskFile), m) })
	})
}

// hashFile returns the SHA-256 of the first size bytes in hexadecimal. It does not read holes.
// check, if not nil, is called with the offset and the bytes of each chunk.
func hashFile(ctx context.Context, f vfs.File, size int64, check func(off int64, p []byte) error) (string, error) {
	sum := sha256.New()
	zeros, buf := make([]byte, chunkSize), make([]byte, chunkSize)
	data, end := int64(0), int64(0) // the first data range at or after off
	for off := int64(0); off < size; off += chunkSize {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		if off >= end {
			var err error
			if data, end, err = f.NextData(off); errors.Is(err, io.EOF) {
				data, end = size, size
			} else if err != nil {
				return "", err
			}
		}
		n := min(size-off, chunkSize)
		p := zeros[:n]
		if data < off+n {
			p = buf[:n]
			if _, err := f.ReadAt(p, off); errors.Is(err, io.EOF) {
				return "", fmt.Errorf("%s: %w", f.Name(), io.ErrUnexpectedEOF)
			} else if err != nil {
				return "", err
			}
		}
		if check != nil {
			if err := check(off, p); err != nil {
				return "", err
			}
		}
		sum.Write(p)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
