package store

import (
	"io/fs"
	"path/filepath"
	"testing"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// A removal that is interrupted anywhere leaves a foreign file, and of cowblk's own files at most
// small ones once the next command has cleaned up. Check shows what is left.
func TestRemovalOfAnImageWithAForeignFileIsInterrupted(t *testing.T) {
	for n, killed := 1, true; killed; n++ {
		s := newStore(t)
		importRaw(t, s, "golden", make([]byte, 1<<20))
		write(t, s.path(imagesDir, "golden", "notes"), []byte("keep"))
		m := faultfs.NewKillFS(vfs.OS{}, faultfs.Kill{At: n})
		s.fs = m
		_, _ = s.Remove(t.Context(), "golden")
		m.CloseFiles()
		killed = m.Killed()
		s.fs = vfs.OS{}
		create(t, s, "next", CreateOptions{Size: 1 << 20})
		notes, images := 0, 0
		test.Must(t, filepath.WalkDir(s.Dir(), func(path string, e fs.DirEntry, err error) error {
			if e.Name() == "notes" {
				notes++
			}
			if e.Name() == dataFile && filepath.Base(filepath.Dir(filepath.Dir(path))) == tmpDir {
				images++
			}
			return err
		}))
		if notes != 1 || images != 0 {
			t.Errorf("killed at change %d: %d foreign files, %d files of data in tmp", n, notes,
				images)
		}
		r, err := s.Check(t.Context(), CheckOptions{})
		test.Must(t, err)
		inTmp := len(entries(t, s.path(tmpDir)))
		if (r.Found > 0) != (inTmp > 0) {
			t.Errorf("killed at change %d: check finds %d, %d entries in tmp", n, r.Found, inTmp)
		}
	}
}
