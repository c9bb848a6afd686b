package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"slices"

	"cowblk/cow"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/store"
	"cowblk/cow/vfs"
)

const storeDir = "/store"

// observation is the content of a whole store, as read.
type observation struct {
	images map[string][]byte
	disks  map[string]*observedDisk
	// damaged has the disks whose manifests cannot be read.
	damaged map[string]bool
	strays  []string // files of layers that no disk names
}

type observedDisk struct {
	content []byte
	names   []string // of tags, oldest first
	tags    [][]byte
}

func openStore(p vfs.FS) (*store.Store, error) {
	return store.Open(storeDir, store.Options{FS: p, Log: slog.New(slog.DiscardHandler),
		Getenv: getenv})
}

// observe reads a store as the programs do: it opens, reads and closes every disk for writing, and
// opens and reads every tag. Nothing may be refused, and no half-made change may be left.
func observe(m *faultfs.Machine) (*observation, error) {
	s, err := openStore(m.Process(nil))
	if err != nil {
		return nil, err
	}
	out := &observation{images: map[string][]byte{}, disks: map[string]*observedDisk{},
		damaged: map[string]bool{}}
	images, err := s.Images()
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		if out.images[img.Name], err = m.Content(s.ImageData(img.Name)); err != nil {
			return nil, err
		}
	}
	names, err := s.DiskNames()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if _, err := s.Disk(name); err != nil {
			out.damaged[name] = true
		} else if out.disks[name], err = readDisk(s, name); err != nil {
			return nil, err
		}
	}
	if err := baseUnchanged(m); err != nil {
		return nil, err
	}
	out.strays, err = leftovers(m, s, len(out.damaged) > 0)
	return out, err
}

// dismantle removes the disks of a store one after the other, beginning with number first. The
// other disks must keep their content, and at the end no layer may be left. seen is an observation
// of the same machine.
func dismantle(m *faultfs.Machine, seen *observation, w *world, first int) error {
	s, err := openStore(m.Process(nil))
	if err != nil {
		return err
	}
	left := sortedKeys(seen.disks)
	if len(left) == 0 && len(seen.damaged) == 0 {
		return nil // no command cleans up
	}
	damaged := sortedKeys(seen.damaged)
	removeDamaged := func() error {
		for _, name := range damaged {
			if _, err := s.RemoveDamaged(context.Background(), name); err != nil {
				return fmt.Errorf("remove damaged disk %s: %w", name, err)
			}
		}
		damaged = nil
		return nil
	}
	if first%2 == 0 {
		if err := removeDamaged(); err != nil {
			return err
		}
	}
	for len(left) > 0 {
		i := first % len(left)
		if _, err := s.Remove(context.Background(), left[i]); err != nil {
			return fmt.Errorf("remove disk %s: %w", left[i], err)
		}
		gone := left[i]
		left = slices.Delete(left, i, i+1)
		for _, name := range left {
			d, err := readDisk(s, name)
			if err != nil {
				return fmt.Errorf("after disk %s was removed: %w", gone, err)
			}
			if !d.equal(seen.disks[name]) {
				return fmt.Errorf("disk %s has changed after disk %s was removed", name, gone)
			}
		}
	}
	if len(damaged) > 0 && first%4 == 1 {
		// The files that only the damaged disks need have stayed.
		if err := w.restoreManifests(m); err != nil {
			return err
		}
		for _, name := range damaged {
			if _, err := s.Remove(context.Background(), name); err != nil {
				return fmt.Errorf("remove disk %s: %w", name, err)
			}
		}
	} else if err := removeDamaged(); err != nil {
		return err
	}
	prune := func() error {
		if _, err := s.Check(context.Background(), store.CheckOptions{Repair: true,
			Prune: true}); err != nil {
			return fmt.Errorf("check with removal of layers that no disk names: %w", err)
		}
		return nil
	}
	if w.strays { // they keep their image
		if err := prune(); err != nil {
			return err
		}
	}
	for _, name := range sortedKeys(seen.images) {
		if _, err := s.Remove(context.Background(), name); err != nil {
			return fmt.Errorf("remove image %s, which no disk uses: %w", name, err)
		}
	}
	if w.strays {
		if err := prune(); err != nil {
			return err
		}
	}
	for _, dir := range []string{"layers", "images", "tmp"} {
		if files := m.Files(path.Join(storeDir, dir)); len(files) > 0 {
			return fmt.Errorf("all disks and images were removed, but %q is left", files)
		}
	}
	return nil
}

func (d *observedDisk) equal(other *observedDisk) bool {
	return bytes.Equal(d.content, other.content) && slices.Equal(d.names, other.names) &&
		slices.EqualFunc(d.tags, other.tags, bytes.Equal)
}

// readDisk reads one disk and its tags.
func readDisk(s *store.Store, name string) (*observedDisk, error) {
	ctx := context.Background()
	o, err := s.OpenDisk(ctx, name, store.OpenOptions{})
	if err != nil {
		return nil, err
	}
	d := &observedDisk{}
	d.content, err = readAll(o.Disk)
	manifest := o.Manifest
	if err := errors.Join(err, o.Close()); err != nil {
		return nil, err
	}
	for _, l := range manifest.Sealed() {
		if l.Tag == "" {
			continue
		}
		p, err := readTag(s, name, l.Tag, cow.Options{})
		if err != nil {
			return nil, err
		}
		d.names, d.tags = append(d.names, l.Tag), append(d.tags, p)
	}
	return d, nil
}

func readTag(s *store.Store, name, tag string, o cow.Options) ([]byte, error) {
	t, err := s.OpenTag(context.Background(), store.Ref{Name: name, Tag: tag}, o)
	if err != nil {
		return nil, err
	}
	p, err := readAll(t.Disk)
	return p, errors.Join(err, t.Close())
}

func readAll(d *cow.Disk) ([]byte, error) {
	p := make([]byte, d.Size())
	if _, err := d.ReadAt(p, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return p, nil
}

// leftovers returns the files that no disk names after the next command has cleaned up.
func leftovers(m *faultfs.Machine, s *store.Store, damaged bool) (strays []string, err error) {
	disks, _ := s.Disks() // without the damaged disks
	// A damaged disk's interrupted change stays until the disk is mended or removed.
	if len(m.Files(path.Join(storeDir, "tmp"))) > 0 && !damaged {
		// Opening a disk has cleaned up. Without disks another change does.
		if len(disks) > 0 {
			return nil, fmt.Errorf("left in tmp: %q", m.Files(path.Join(storeDir, "tmp")))
		}
		if _, err := s.Create(context.Background(), "probe",
			store.CreateOptions{Size: 4096}); err != nil {
			return nil, fmt.Errorf("the store cannot be used any more: %w", err)
		}
		if _, err := s.Remove(context.Background(), "probe"); err != nil {
			return nil, fmt.Errorf("the store cannot be used any more: %w", err)
		}
	}
	named := map[string]bool{}
	for _, d := range disks {
		for _, l := range d.Layers {
			named[l.UUID.String()] = true
		}
	}
	for _, f := range m.Files(path.Join(storeDir, "layers")) {
		if id := path.Base(path.Dir(f)); !named[id] {
			strays = append(strays, f)
		}
	}
	return strays, nil
}

// getenv gives users other than root a run directory in the machine's memory too.
func getenv(name string) string {
	if name == "XDG_RUNTIME_DIR" {
		return faultfs.MemoryDir
	}
	return ""
}
