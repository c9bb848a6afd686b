package store

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"

	"cowblk/cow"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// An older cowblk was killed. In the same run of the kernel the disk is refused, with the ways to
// continue. Later its live file means nothing and is removed.
func TestAnOlderVersionWasKilled(t *testing.T) {
	boot, err := vfs.OS{}.Boot()
	test.Must(t, err)
	for name, c := range map[string]struct {
		boot    string
		clean   bool
		o       OpenOptions
		refused bool
	}{
		"in this run":              {boot: boot, refused: true},
		"in this run, for reading": {boot: boot, o: OpenOptions{ReadOnly: true}, refused: true},
		"given up": {boot: boot,
			o: OpenOptions{Cow: cow.Options{Unflushed: layer.DropUnflushed}}},
		"in another run":  {boot: uuid.NewString()},
		"closed in order": {boot: boot, clean: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir())
			m := create(t, s, "vm1", CreateOptions{Size: 1 << 20})
			if !c.clean {
				o, err := s.OpenDisk(ctx, "vm1", OpenOptions{})
				test.Must(t, err)
				test.Must(t, test.Err(o.Disk.Detach()))
				o.Lock.Unlock()
			}
			id := m.Head().UUID
			file := append([]byte("COWBLK\x00V"), id[:]...)
			file = binary.LittleEndian.AppendUint64(file, 1)
			file = append(binary.LittleEndian.AppendUint64(file, 2), c.boot...)
			path := s.legacyLiveFile("vm1", id)
			test.Must(t, os.WriteFile(path, append(file, make([]byte, 8192)...), 0o600))
			o, err := s.OpenDisk(ctx, "vm1", c.o)
			if c.refused {
				if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(),
					"--drop-unflushed") {
					t.Errorf("%v, expected a refusal with advice", err)
				}
				return
			}
			test.Must(t, err)
			test.Must(t, o.Close())
			test.ErrorIs(t, test.Err(os.Stat(path)), os.ErrNotExist, "the file is still there")
		})
	}
}

// A disk on a former head that was neither closed in order nor sealed is opened although the
// manifest of another disk is damaged. The test for a killed older version does not need that
// manifest.
func TestFormerHeadBesideDamage(t *testing.T) {
	s := openStore(t, t.TempDir())
	create(t, s, "other", CreateOptions{Size: 1 << 20})
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	o, err := s.OpenDisk(ctx, "vm1", OpenOptions{})
	test.Must(t, err)
	test.Must(t, test.Err(o.Disk.Detach()))
	p, err := s.PreparePromotion(ctx, []*Manifest{o.Manifest}, "t")
	test.Must(t, err)
	for _, h := range p.Heads() {
		test.Must(t, h.Close())
	}
	test.Must(t, p.Commit())
	p.Close(true)
	test.Must(t, o.Lock.Unlock())
	test.Must(t, os.Truncate(s.path(disksDir, "other", diskFile), 100))
	content(t, s, "vm1")
}
