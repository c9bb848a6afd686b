package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// The index, in index/disks, caches what the manifests name. A deletion need not read all
// manifests: it checks that they have not changed (survey.go). An entry is used only if the
// manifest is in the recorded state: an unreadable manifest in another state may name any layer.
// One fact is only in the index, and it only keeps layers: what a disk named whose directory was
// moved away.
//
// Each line is an entry with a checksum before it. Readers skip torn and damaged lines, and a later
// line replaces an earlier one of the same disk. The creation or promotion of a disk appends a
// line; a deletion rewrites the file. A failed write fails no command. The index is synced only
// when it drops a disk, before the layers of the disk are deleted: an old index would list the disk
// as moved away.

const (
	indexVersion = 1
	indexPerm    = filePerm
)

// defaultClockMargin is the minimum age of a manifest at its reading, so that its timestamps show
// every later change: a file system's clock may tick every two seconds.
const defaultClockMargin = 3 * time.Second

// compactFrom is the size in bytes from which a growing index is rewritten at each doubling.
const compactFrom = 64 << 10

// directory identifies a disk's directory across renames.
type directory struct {
	Dev   uint64 `json:"dev"`
	Inode uint64 `json:"inode"`
}

// indexEntry records what the manifest of one disk names.
type indexEntry struct {
	Version int    `json:"version"`
	Name    string `json:"name"` // of its directory
	// Manifest is the state of disk.json when it was read; nil: the entry does not match the
	// current manifest.
	Manifest  *vfs.Version `json:"manifest,omitempty"`
	Directory *directory   `json:"directory,omitempty"`
	Image     string       `json:"image,omitempty"`
	Head      uuid.UUID    `json:"head"`
	Layers    []uuid.UUID  `json:"layers"`              // including the head
	Elsewhere bool         `json:"elsewhere,omitempty"` // the head lies outside the store
	// Away: the disk was moved away, and another disk has its name now.
	Away bool `json:"away,omitempty"`
}

// entryOf returns the entry of a manifest in the directory name. Its Manifest state is not set.
func entryOf(name string, m *Manifest) *indexEntry {
	e := &indexEntry{Version: indexVersion, Name: name, Head: m.Head().UUID, Layers: m.uuids(),
		Elsewhere: !m.Head().inStore()}
	if m.Base != nil {
		e.Image = m.Base.Image
	}
	return e
}

// names reports whether the entry includes the layer.
func (e *indexEntry) names(id uuid.UUID) bool { return slices.Contains(e.Layers, id) }

// line returns the entry's line in the file.
func (e *indexEntry) line() []byte {
	text, err := json.Marshal(e)
	if err != nil {
		return nil // cannot happen
	}
	return slices.Concat(lineSum(text), []byte(" "), text, []byte("\n"))
}

func lineSum(text []byte) []byte {
	sum := sha256.Sum256(text)
	return hex.AppendEncode(nil, sum[:8])
}

// manifestIndex is the content of the index.
type manifestIndex struct {
	text    []byte
	entries map[string]*indexEntry // by disk name
	away    []*indexEntry
	lines   map[string][]int64 // by disk name: offsets of the lines of the entry
	whole   bool               // the file exists, and no line is damaged
}

// readIndex reads the index. It skips what it cannot read.
func (s *Store) readIndex() *manifestIndex {
	x := &manifestIndex{entries: map[string]*indexEntry{}, lines: map[string][]int64{}}
	path := s.path(indexDir, indexFile)
	if s.ownIndex(path) != nil {
		return x
	}
	text, err := s.readBoundedAs(path, os.O_RDONLY|syscall.O_NOFOLLOW)
	if err != nil {
		return x
	}
	x.text, x.whole = text, true
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
		x.whole = x.whole && line[0] == '-' // see voidLines
		return
	}
	e := new(indexEntry)
	if json.Unmarshal(text, e) != nil || e.Version != indexVersion || e.Name == "" {
		x.whole = false
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

// announced returns the layers that a change in progress was to add to the disk: see indexManifest.
func (e *indexEntry) announced() []uuid.UUID {
	return e.Layers[slices.Index(e.Layers, e.Head)+1:]
}

// replacedBy returns what to remember of an entry when a new entry has its name: the entry, unless
// both describe the same disk. A disk that is promoted keeps its head as a layer; a disk that is
// rolled back has the announced head. For other changes this program updates the index.
func (e *indexEntry) replacedBy(now *indexEntry) []*indexEntry {
	if now.names(e.Head) || slices.Contains(e.announced(), now.Head) {
		return nil
	}
	old := *e
	old.Away, old.Manifest = true, nil
	return []*indexEntry{&old}
}

// writeIndex replaces the index with text. at is a file from newIndex.
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
	if err != nil {
		_ = s.fs.Remove(path + vfs.TempSuffix) // it may have taken the last block
	}
	if err == nil && durable {
		_ = s.fs.SyncDir(s.path(indexDir)) // the index is written even if this fails
	}
	return err
}

// newIndex creates the temporary file of a new index and returns the file system's current time.
// After an error the index is not rewritten.
func (s *Store) newIndex() (vfs.File, time.Time, error) {
	path := s.path(indexDir, indexFile) + vfs.TempSuffix
	if err := s.fs.MkdirAll(s.path(indexDir), dirPerm); err != nil {
		return nil, time.Time{}, err
	}
	for _, path := range []string{path, s.path(indexDir, indexFile)} {
		if err := s.ownIndex(path); err != nil {
			return nil, time.Time{}, err
		}
	}
	// A file that is there is a leftover.
	open := func() (vfs.File, error) {
		return s.fs.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, indexPerm)
	}
	f, err := open()
	if errors.Is(err, fs.ErrExist) {
		if err = s.fs.Remove(path); err == nil {
			f, err = open()
		}
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	// A byte, for the time of a write.
	_, err = f.WriteAt([]byte("\n"), 0)
	var st fs.FileInfo
	if err == nil {
		st, err = s.fs.Stat(path)
	}
	if err != nil {
		f.Close()
		_ = s.fs.Remove(path)
		return nil, time.Time{}, err
	}
	return f, st.ModTime(), nil
}

// indexManifest appends what a manifest names. more are layers that it will name soon. The caller
// holds the store's lock.
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
	if err := s.ownIndex(s.path(indexDir, indexFile)); err != nil {
		return err
	}
	f, err := s.fs.OpenFile(s.path(indexDir, indexFile), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW,
		indexPerm)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	line = append([]byte("\n"), line...) // the last line may be torn
	if now := size + int64(len(line)); now > compactFrom && bits.Len64(uint64(now)) != bits.Len64(
		uint64(size)) {
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

// compact rewrites the index with the last line of each disk in text.
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

// indexText returns the content of an index.
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

// voidLines invalidates the lines of a disk in place, which needs no space, if the index cannot be
// rewritten.
func (s *Store) voidLines(name string) error {
	x := s.readIndex()
	if len(x.lines[name]) == 0 {
		return nil
	}
	f, err := s.fs.OpenFile(s.path(indexDir, indexFile), os.O_RDWR|syscall.O_NOFOLLOW, 0)
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

// indexLine is the beginning of a line of an index, of any version. voidLines overwrites the first
// digit.
var indexLine = regexp.MustCompile(`(?m)^[-0-9a-f][0-9a-f]{15} \{"version":`)

// cutLine is an index whose first line is cut off within its beginning, as by a power cut.
var cutLine = regexp.MustCompile(
	`^[-0-9a-f]?[0-9a-f]{0,15}( (\{("(v(e(r(s(i(o(n"?)?)?)?)?)?)?)?)?)?)?$`)

// lineEnd is an index whose first sectors, with the beginning of a line, a power cut has left as
// zeros.
var lineEnd = regexp.MustCompile(`^(\x00{512})+[ -~]*\}(\n|$)`)

// ownIndex returns errForeign for a file in the place of an index, or of its temporary file, that
// contains something else. A missing or empty file, and zeros and a part of a line after a power
// cut, are accepted.
func (s *Store) ownIndex(path string) error {
	text, err := s.beginOf(path, compactFrom)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if cutLine.Match(bytes.Trim(text, "\n\x00")) || indexLine.Match(text) || lineEnd.Match(text) {
		return nil
	}
	return fmt.Errorf("%s: %w", shell.Text(path), errForeign)
}
