package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"cowblk/cow"
	"cowblk/cow/finding"
	"cowblk/cow/imagefile"
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
	f, now, err := s.openBase(m, b.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if imagefile.SameState(now, *b.Identity) {
		return spec, nil
	}
	if err := checkFingerprint(f, m); err != nil {
		return nil, err
	}
	return nil, imagefile.StateFinding(b.Path, *b.Identity, now,
		fmt.Sprintf("The %d KiB that were sampled are the same. If you know that all of it is: %s",
			sampledBytes(b.Size)>>10, s.command("trust-base", m.Name)))
}

// sampledBytes returns the maximum number of bytes that a fingerprint samples; see
// layer.ComputeFingerprint.
func sampledBytes(size int64) int64 { return min(size, 2*64<<10+256*4<<10) }

// openBase opens the file at path, the base of m, and returns its state.
func (s *Store) openBase(m *Manifest, path string) (f vfs.File, now vfs.Identity, err error) {
	f, err = vfs.OpenImage(s.fs, path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, now, refused(path, "base of disk "+m.Name,
			"the file that the disk was created on", "no such file",
			"put it back in this place; the disk's layers hold only what differs from it")
	}
	if err != nil {
		return nil, now, imagefile.Refused("base of disk "+m.Name, path, err)
	}
	if now, err = f.Identity(); err != nil {
		f.Close()
	}
	return f, now, err
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
		return refused(f.Name(), "size of the base", "at least "+finding.Bytes(b.Offset+b.Size),
			finding.Bytes(size), advice)
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
	f, now, err := s.openBase(m, path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := img.checkSize(path, now); err != nil {
		return err
	}
	if imagefile.SameState(now, img.Identity) {
		return nil
	}
	s.log.Warn("an image's file differs from its recorded state: checking the whole content",
		"image", img.Name, "size", img.Size)
	if err := img.compare(ctx, f, func(int64) {}); err != nil {
		return err
	}
	// An optimization: without the record the next open hashes again.
	err = s.locked(ctx, func() error {
		img.Identity = now
		return s.writeDocument(s.path(imagesDir, img.Name, imageFile), img)
	})
	if err != nil {
		s.log.Warn("the image is unchanged, but that could not be recorded", "image", img.Name,
			"err", err)
	}
	return nil
}

// shareAdvice names the option that ignores a lock: any process that can read a base can lock it.
const shareAdvice = "if you know that nobody changes the base: --force-share (of create --base, serve, run and export)"
