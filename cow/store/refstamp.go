package store

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"syscall"
	"time"

	"cowblk/cow/vfs"
)

// stampFile, in refs/, says for which state of the store the references hold.
const stampFile = "stamp"

// stampSize is the length of the stamp, which is filled up with spaces: to write it anew takes no room.
const stampSize = 1024

// refStamp is the content of stampFile. The references hold while all of it is as it says: the run of the operating
// system and the mounted file system, because they are not synced, and the two directories in which every change of
// layers and disks, an older cowblk's too, makes or removes a name.
type refStamp struct {
	Version    int      `json:"version"`
	Boot       string   `json:"boot"`        // vfs.SharedFS.Boot
	FileSystem string   `json:"file-system"` // vfs.SharedFS.Instance
	Layers     dirState `json:"layers"`
	Disks      dirState `json:"disks"`
	Unreadable string   `json:"unreadable,omitempty"` // see refs
	Unknown    bool     `json:"unknown,omitempty"`    // see refs
	Key        string   `json:"key"`                  // a random number; see refs.mark
}

const stampVersion = 2

// dirState tells one state of a directory from another. The time is one that a stamp has given it, to the nanosecond:
// the kernel's own are so coarse that two changes can leave the same.
type dirState struct {
	Dev   uint64 `json:"dev"`
	Inode uint64 `json:"inode"`
	MTime int64  `json:"mtime"` // nanoseconds since 1970
}

// runNamer is the part of vfs.SharedFS that says in which run of the system and on which mounted file system a file is.
type runNamer interface {
	Boot() (string, error)
	Instance(f vfs.File) (string, error)
}

// validRefs returns the references if they hold, else nil.
func (s *Store) validRefs() *refs {
	f, err := s.fs.OpenFile(s.path(refsDir, stampFile), os.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	buf := make([]byte, stampSize)
	if _, err := f.ReadAt(buf, 0); err != nil {
		return nil
	}
	var found refStamp
	if json.Unmarshal(buf, &found) != nil {
		return nil
	}
	now, err := s.refState(f)
	if err != nil {
		return nil
	}
	now.Unreadable, now.Unknown, now.Key = found.Unreadable, found.Unknown, found.Key
	if found != now {
		return nil
	}
	if found.Unreadable != "" {
		// It may have been put right, and named layers that were not known to be needed: nothing in disks/ shows that.
		if there, err := s.exists(s.path(disksDir, found.Unreadable)); err != nil || !there {
			return nil
		}
		if _, err := s.Disk(found.Unreadable); err == nil {
			return nil
		}
	}
	return &refs{s: s, unreadable: found.Unreadable, unknown: found.Unknown, key: found.Key}
}

// refState is the stamp of the store as it is; f is a file in it.
func (s *Store) refState(f vfs.File) (st refStamp, err error) {
	st.Version = stampVersion
	names, ok := s.fs.(runNamer)
	if !ok {
		return st, errors.ErrUnsupported
	}
	if st.Boot, err = names.Boot(); err != nil {
		return st, err
	}
	if st.FileSystem, err = names.Instance(f); err != nil {
		return st, err
	}
	if st.Layers, err = s.dirState(layersDir); err == nil {
		st.Disks, err = s.dirState(disksDir)
	}
	return st, err
}

func (s *Store) dirState(dir string) (dirState, error) {
	st, err := s.fs.Stat(s.path(dir))
	if err != nil {
		return dirState{}, err
	}
	d := dirState{MTime: st.ModTime().UnixNano()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		d.Dev, d.Inode = sys.Dev, sys.Ino
	}
	return d, nil
}

// stamp says that the references hold now, if they do. Where that cannot be said they do not hold for the next one.
func (r *refs) stamp() {
	if r == nil || r.failed || r.graph != nil {
		return
	}
	s := r.s
	f, err := s.fs.OpenFile(s.path(refsDir, stampFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	at := time.Unix(time.Now().Unix(), rand.Int64N(int64(time.Second)))
	for _, dir := range []string{layersDir, disksDir} {
		if s.fs.SetModTime(s.path(dir), at) != nil {
			return
		}
	}
	st, err := s.refState(f)
	if err != nil || st.Layers.MTime != at.UnixNano() || st.Disks.MTime != at.UnixNano() {
		return // the file system keeps coarser times
	}
	st.Unreadable, st.Unknown, st.Key = r.unreadable, r.unknown, r.key
	if text, err := json.Marshal(st); err == nil && len(text) <= stampSize {
		_, _ = f.WriteAt(padded(text), 0)
	}
}

// invalidate takes the stamp away. Its error says that refs/ cannot be written.
func (s *Store) invalidate() error {
	if err := s.fs.MkdirAll(s.path(refsDir), 0o700); err != nil {
		return err
	}
	f, err := s.fs.OpenFile(s.path(refsDir, stampFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(padded(nil), 0)
	return err
}

// padded is text filled up to stampSize.
func padded(text []byte) []byte {
	p := make([]byte, stampSize)
	for i := copy(p, text); i < len(p); i++ {
		p[i] = ' '
	}
	return p
}
