package store

import (
	"context"
	"errors"
	"io/fs"

	"cowblk/cow/finding"
	"cowblk/cow/imagefile"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// image checks one image, once.
func (c *checker) image(name string) *Report {
	if k := c.images[name]; k != nil {
		return k
	}
	k := &Report{Kind: KindImage, Name: name, Problems: []*finding.Finding{}}
	c.images[name] = k
	if f := c.untrustedFinding(c.s.path(imagesDir, name, imageFile),
		c.s.ImageData(name)); f != nil {
		k.add("image", f)
		return k
	}
	img, err := c.s.Image(name)
	switch {
	case errors.Is(err, ErrNotFound):
		k.add("image.json", refused(c.s.path(imagesDir, name, imageFile),
			"description of the image", "a file", "none",
			"restore it from a backup; disks on it need the same content"))
	case err != nil:
		k.addError("image.json", err)
	}
	c.reportTempFile(k, err == nil, imagesDir, name, imageFile)
	if err != nil {
		return k
	}
	if err := c.imageData(k, img); err != nil {
		k.addErrorOrMissing("image data", c.s.ImageData(name), err)
	}
	return k
}

// imageData compares samples of an image's content with the recorded fingerprint. It compares the
// whole content if the file's state differs from the recorded one, as the next open would, or for
// CheckFull.
func (c *checker) imageData(k *Report, img *Image) error {
	path := c.s.ImageData(img.Name)
	f, err := c.s.fs.OpenFile(path, 0, 0)
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
	fingerprint, err := layer.ComputeFingerprint(f, 0, img.Size)
	if err != nil {
		return err
	}
	if fingerprint != img.Fingerprint {
		return refused(path, "sampled content of the image",
			"fingerprint "+img.Fingerprint.String(), fingerprint.String(), adviceImage)
	}
	touched := !imagefile.SameState(now, img.Identity)
	if c.o.Depth != CheckFull && (!touched || c.o.Depth == CheckFast) {
		if touched {
			k.addNote("its file differs from its recorded state; its content is compared when a disk on it is opened")
		}
		return nil
	}
	if err := img.compare(c.ctx, f,
		func(done int64) { c.progress(img.Name, done, img.Size) }); err != nil {
		return err
	}
	if touched {
		c.touchedImage(k, img, now)
	}
	return nil
}

// touchedImage reports an image whose modification time differs and whose content is the same.
func (c *checker) touchedImage(k *Report, img *Image, now vfs.Identity) {
	p := k.add("image data", imagefile.StateFinding(c.s.ImageData(img.Name), img.Identity, now, ""))
	p.Remedy, p.Leftover = "record the new time: the whole content is the same", true
	c.applyRemedy(k, p, func() error {
		return c.s.locked(context.WithoutCancel(c.ctx), func() error {
			fresh, err := c.s.Image(img.Name)
			if errors.Is(err, fs.ErrNotExist) || err != nil {
				return err
			}
			fresh.Identity = now
			return c.s.writeDocument(c.s.path(imagesDir, img.Name, imageFile), fresh)
		})
	})
}
