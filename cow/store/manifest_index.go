package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/vfs"
)

// The index, in index/disks, is a cache of what the manifests of disks name, so that who deletes need not read all of
// them: it is enough to see that they have not changed (disk_survey.go). Nothing in it is believed of a manifest that is
// not in the state that its entry has. Two things only the index knows, and both only keep layers: what a manifest named
// that cannot be read any more, and what a disk named whose directory somebody has moved away.
//
// It is lines, each an entry behind a checksum of it. A line that is torn or damaged is passed over, and a later line
// replaces an earlier one of the same disk: who makes or promotes a disk adds a line, who deletes writes the file anew.
// No command fails because it cannot be written. It is synced only where it forgets a disk, before the layers of the disk
// go: an older index would take the disk for one that was moved away.

const (
	indexDir     = "index"
	indexFile    = "disks"
	indexVersion = 1
	indexPerm    = filePerm
)

// defaultClockMargin is by how much a manifest must be older than its reading for its times to show every later change: a
// file system's clock may tick every two seconds.
const defaultClockMargin = 3 * time.Second

// compactFrom is the size, in bytes, from which an index that grows by lines is written anew at each doubling.
const compactFrom = 64 << 10

// fileState tells one state of a file from another. Nobody can set the time of change (ctime).
type fileState struct {
	Dev   uint64 `json:"dev"`
	Inode uint64 `json:"inode"`
	Size  int64  `json:"size"`
	MTime int64  `json:"mtime"` // nanoseconds since 1970
	CTime int64  `json:"ctime"` // likewise
}

// directory is the inode of a disk's directory, which a change of its name does not change.
type directory struct {
	Dev   uint64 `json:"dev"`
	Inode uint64 `json:"inode"`
}

// indexEntry is what the manifest of one disk names.
type indexEntry struct {
	Version int    `json:"version"`
	Name    string `json:"name"` // of its directory
	// Manifest is the state of disk.json when it was read; nil: the entry proves nothing of the manifest that is there.
	Manifest  *fileState  `json:"manifest,omitempty"`
	Directory *directory  `json:"directory,omitempty"`
	Image     string      `json:"image,omitempty"`
	Head      uuid.UUID   `json:"head"`
	Layers    []uuid.UUID `json:"layers"`              // with the head
	Elsewhere bool        `json:"elsewhere,omitempty"` // the head lies outside the store
	// Away: the disk was moved away, and another one has its name now.
	Away bool `json:"away,omitempty"`
}

// entryOf is the entry of a manifest, in the directory of this name, whose state is not known.
func entryOf(name string, m *Manifest) *indexEntry {
	e := &indexEntry{Version: indexVersion, Name: name, Head: m.Head().UUID, Layers: m.uuids(), Elsewhere: !m.Head().inStore()}
	if m.Base != nil {
		e.Image = m.Base.Image
	}
	return e
}

// names reports whether the entry has the layer.
func (e *indexEntry) names(id uuid.UUID) bool { return slices.Contains(e.Layers, id) }

// line is the entry as it stands in the file.
func (e *indexEntry) line() []byte {
	text, err := json.Marshal(e)
	if err != nil {
		return nil // no such entry can be made
	}
	return slices.Concat(lineSum(text), []byte(" "), text, []byte("\n"))
}

func lineSum(text []byte) []byte {
	sum := sha256.Sum256(text)
	return hex.AppendEncode(nil, sum[:8])
}

// manifestIndex is an index that was read.
type manifestIndex struct {
	text    []byte
	entries map[string]*indexEntry // of the disks of these names
	away    []*indexEntry
	lines   map[string][]int64 // where the lines of each of entries begin
}

// readIndex reads what can be read: an index without an entry is one.
func (s *Store) readIndex() *manifestIndex {
	x := &manifestIndex{entries: map[string]*indexEntry{}, lines: map[string][]int64{}}
	text, err := s.readBounded(s.path(indexDir, indexFile))
	if err != nil {
		return x
	}
	x.text = text
	var off int64
	for line := range bytes.Lines(text) {
		x.add(line, off)
		off += int64(len(line))
	}
	return x
}

func (x *manifestIndex) add(line []byte, off int64) {
	sum, text, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
	if !ok || !bytes.Equal(sum, lineSum(text)) {
		return
	}
	e := new(indexEntry)
	if json.Unmarshal(text, e) != nil || e.Version != indexVersion || e.Name == "" {
		return
	}
	if e.Away {
		x.away = append(x.away, e)
		return
	}
	if old := x.entries[e.Name]; old != nil {
		x.away = append(x.away, old.replacedBy(e)...)
	}
	x.entries[e.Name] = e
	x.lines[e.Name] = append(x.lines[e.Name], off)
}

// replacedBy returns what is to be remembered of an entry whose name now has another one: the entry itself, unless the
// disk is the same. A disk that goes on keeps its head as a layer, or this program knows that it does not.
func (e *indexEntry) replacedBy(now *indexEntry) []*indexEntry {
	if now.names(e.Head) {
		return nil
	}
	old := *e
	old.Away, old.Manifest = true, nil
	return []*indexEntry{&old}
}

// writeIndex replaces the index. at is a new file from newIndex.
func (s *Store) writeIndex(at vfs.File, text []byte, durable bool) error {
	path := s.path(indexDir, indexFile)
	_, err := at.WriteAt(text, 0)
	if err == nil {
		err = at.Truncate(int64(len(text)))
	}
	if err == nil && durable {
		err = at.Datasync()
	}
	if err == nil {
		err = s.fs.Rename(path+vfs.TempSuffix, path)
	}
	if err == nil && durable {
		_ = s.fs.SyncDir(s.path(indexDir)) // it is written all the same
	}
	return err
}

// newIndex makes the file that is to become the index, and returns the file system's own time. Its error says that there
// will be none.
func (s *Store) newIndex() (vfs.File, time.Time, error) {
	path := s.path(indexDir, indexFile) + vfs.TempSuffix
	if err := s.fs.MkdirAll(s.path(indexDir), dirPerm); err != nil {
		return nil, time.Time{}, err
	}
	f, err := s.fs.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, indexPerm)
	if err != nil {
		return nil, time.Time{}, err
	}
	// The change of a byte, for a file that was there already keeps its times.
	_, err = f.WriteAt([]byte("\n"), 0)
	var st fs.FileInfo
	if err == nil {
		st, err = s.fs.Stat(path)
	}
	if err != nil {
		f.Close()
		return nil, time.Time{}, err
	}
	return f, st.ModTime(), nil
}

// stateOf is the state of a manifest; nil where the file system does not tell.
func stateOf(st fs.FileInfo) *fileState {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return &fileState{Dev: sys.Dev, Inode: sys.Ino, Size: sys.Size, MTime: sys.Mtim.Nano(), CTime: sys.Ctim.Nano()}
}

// indexManifest adds what a manifest names, or is about to name. The store is locked. more are layers that the manifest does
// not name yet.
func (s *Store) indexManifest(m *Manifest, more ...uuid.UUID) {
	e := entryOf(m.Name, m)
	e.Directory = s.directoryOf(m.Name)
	e.Layers = append(e.Layers, more...)
	if err := s.appendIndex(e.line()); err != nil {
		s.log.Debug("the index of manifests cannot be written", "err", err)
	}
}

func (s *Store) appendIndex(line []byte) error {
	if err := s.fs.MkdirAll(s.path(indexDir), dirPerm); err != nil {
		return err
	}
	f, err := s.fs.OpenFile(s.path(indexDir, indexFile), os.O_RDWR|os.O_CREATE, indexPerm)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	line = append([]byte("\n"), line...) // the last line may be torn
	if now := size + int64(len(line)); now > compactFrom && bits.Len64(uint64(now)) != bits.Len64(uint64(size)) {
		text := make([]byte, size)
		if n, err := f.ReadAt(text, 0); err != nil && err != io.EOF {
			return err
		} else if err := s.compact(append(text[:n], line...)); err == nil {
			return nil
		}
	}
	_, err = f.WriteAt(line, size)
	return err
}

// compact replaces the index by one of the last lines in text.
func (s *Store) compact(text []byte) error {
	x := &manifestIndex{entries: map[string]*indexEntry{}, lines: map[string][]int64{}}
	for line := range bytes.Lines(text) {
		x.add(line, 0)
	}
	f, _, err := s.newIndex()
	if err != nil {
		return err
	}
	defer f.Close()
	return s.writeIndex(f, indexText(x.entries, x.away), false)
}

// indexText is the content of an index.
func indexText(entries map[string]*indexEntry, away []*indexEntry) []byte {
	var lines [][]byte
	for _, e := range entries {
		lines = append(lines, e.line())
	}
	for _, e := range away {
		lines = append(lines, e.line())
	}
	slices.SortFunc(lines, func(a, b []byte) int { return bytes.Compare(a[16:], b[16:]) })
	return bytes.Join(slices.CompactFunc(lines, bytes.Equal), nil)
}

// voidLines makes the lines of a disk void where the index cannot be written anew: that takes no room.
func (s *Store) voidLines(name string) error {
	x := s.readIndex()
	if len(x.lines[name]) == 0 {
		return nil
	}
	f, err := s.fs.OpenFile(s.path(indexDir, indexFile), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, off := range x.lines[name] {
		if _, err := f.WriteAt([]byte("-"), off); err != nil {
			return err
		}
	}
	return f.Datasync()
}
