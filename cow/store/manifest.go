package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/layer"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// formatVersion is the version of disk.json and image.json.
const formatVersion = 1

// Manifest describes a disk: the content of disk.json. cow/FORMAT.md specifies it.
type Manifest struct {
	Version   int       `json:"version"`
	Name      string    `json:"name"`
	Size      int64     `json:"size"`       // bytes
	BlockSize int       `json:"block-size"` // bytes
	Created   time.Time `json:"created"`
	Base      *Base     `json:"base,omitempty"` // absent: zeros
	Layers    []Layer   `json:"layers"`         // oldest first; the last one is the head
	// TableStart is the START of the disk's device-mapper table, in sectors of 512 bytes.
	TableStart int64 `json:"table-start,omitempty"`
	// MayIgnore is an object of members that readers may ignore. Writers keep it.
	MayIgnore json.RawMessage `json:"may-ignore,omitempty"`
}

// Base is the bottom of a stack: an image of the store, or a file or block device used in place.
type Base struct {
	Image       string            `json:"image,omitempty"` // name; else Path
	Path        string            `json:"path,omitempty"`  // absolute
	Offset      int64             `json:"offset"`          // bytes into the file
	Size        int64             `json:"size"`            // bytes from there
	Fingerprint layer.Fingerprint `json:"fingerprint"`     // of those bytes
	// Identity is the state of the file when its content was last verified. It is absent for an
	// image: image.json has it.
	Identity *vfs.Identity `json:"identity,omitempty"`
}

// String names the base for a message.
func (b *Base) String() string {
	switch {
	case b == nil:
		return "zeros"
	case b.Image != "":
		return b.Image
	case b.Offset != 0:
		return b.Path + "+" + strconv.FormatInt(b.Offset, 10)
	}
	return b.Path
}

// Layer is one layer of a disk.
type Layer struct {
	UUID       uuid.UUID  `json:"uuid"`
	Map        string     `json:"map"`         // relative to the store for layers in the store, else absolute
	Data       string     `json:"data"`        // same
	DataOffset int64      `json:"data-offset"` // bytes into Data
	Tag        string     `json:"tag,omitempty"`
	Created    time.Time  `json:"created"`          // zero: unknown
	Sealed     *time.Time `json:"sealed,omitempty"` // planned or actual time of the seal; absent: a head, or unknown
}

// inStore reports whether the layer's files belong to the store. Those of a device-mapper table do
// not.
func (l *Layer) inStore() bool { return !filepath.IsAbs(l.Map) }

// storeLayer returns the manifest entry of a layer in the store.
func storeLayer(id uuid.UUID, created time.Time) Layer {
	return Layer{
		UUID: id, Created: created,
		Map:  filepath.Join(layersDir, id.String(), mapFile),
		Data: filepath.Join(layersDir, id.String(), dataFile),
	}
}

// paths returns the files of a layer.
func (s *Store) paths(l *Layer) layer.Paths {
	if l.inStore() {
		return layer.Paths{Map: s.path(l.Map), Data: s.path(l.Data), DataOffset: l.DataOffset}
	}
	return layer.Paths{Map: l.Map, Data: l.Data, DataOffset: l.DataOffset,
		Checksums: s.path(layersDir, l.UUID.String(), checksumsFile)}
}

// HeadData returns the path of the data of the disk's head.
func (s *Store) HeadData(m *Manifest) string { return s.paths(m.Head()).Data }

// uuids returns the UUIDs of the layers, oldest first.
func (m *Manifest) uuids() (all []uuid.UUID) {
	for _, l := range m.Layers {
		all = append(all, l.UUID)
	}
	return all
}

// Head returns the writable layer.
func (m *Manifest) Head() *Layer { return &m.Layers[len(m.Layers)-1] }

// Sealed returns the layers below the head, oldest first.
func (m *Manifest) Sealed() []Layer { return m.Layers[:len(m.Layers)-1] }

// tagsFrom returns the tags of the sealed layers from index i on, oldest first.
func (m *Manifest) tagsFrom(i int) []string {
	tags := []string{}
	for _, l := range m.Layers[i:] {
		if l.Tag != "" {
			tags = append(tags, l.Tag)
		}
	}
	return tags
}

// Tagged returns the index of the sealed layer with the tag, or an ErrNotFound that lists the
// existing tags.
func (m *Manifest) Tagged(tag string) (int, error) {
	if i := slices.IndexFunc(m.Sealed(), func(l Layer) bool { return l.Tag == tag }); i >= 0 {
		return i, nil
	}
	if tags := m.tagsFrom(0); len(tags) > 0 {
		return 0, fmt.Errorf("tag %s@%s %w: disk %q has the tags %s", m.Name, tag, ErrNotFound,
			m.Name, listText(tags))
	}
	return 0, fmt.Errorf("tag %s@%s %w: disk %q has no tags yet (\"cowblk promote\" makes one)",
		m.Name, tag, ErrNotFound, m.Name)
}

// check refuses values that no version of this program writes.
func (m *Manifest) check(name string) error {
	switch {
	case m.Name != name:
		return &nameError{expected: name, found: m.Name}
	case m.Size <= 0 || m.Size%layer.SectorSize != 0 || m.Size > layer.MaxSize:
		return fmt.Errorf("size: expected a positive multiple of 512 up to 2^60, found %d", m.Size)
	case m.BlockSize < layer.MinBlockSize || m.BlockSize > layer.MaxBlockSize ||
		m.BlockSize&(m.BlockSize-1) != 0:
		return fmt.Errorf("block-size: expected a power of two from 512 to 65536, found %d",
			m.BlockSize)
	case len(m.Layers) == 0:
		return errors.New("layers: expected at least the head, found none")
	case m.TableStart < 0:
		return fmt.Errorf("table-start: expected a number of sectors, found %d", m.TableStart)
	}
	if b := m.Base; b != nil {
		if (b.Image == "") == (b.Path == "") || b.Image != "" &&
			CheckName("image", b.Image) != nil || b.Path != "" && !filepath.IsAbs(b.Path) {
			return fmt.Errorf(
				"base: expected the name of an image or an absolute path, found %q and %q", b.Image,
				b.Path)
		}
		if (b.Path == "") != (b.Identity == nil) {
			return errors.New("base: expected an identity for a path, and none for an image")
		}
		if b.Offset < 0 || b.Offset > layer.MaxSize {
			return fmt.Errorf("base.offset: expected 0 to 2^60, found %d", b.Offset)
		}
		// Package cow takes 0 as the whole file, and the layers record the number of bytes.
		if b.Size <= 0 || b.Size%layer.SectorSize != 0 || b.Size > layer.MaxSize {
			return fmt.Errorf("base.size: expected a positive multiple of 512 up to 2^60, found %d",
				b.Size)
		}
		if b.Image != "" && b.Offset != 0 {
			return fmt.Errorf("base.offset: expected 0 on an image, found %d", b.Offset)
		}
		if b.Fingerprint.IsZero() {
			return errors.New("base: expected a fingerprint, found none")
		}
	}
	seen, tags := map[uuid.UUID]bool{}, map[string]bool{}
	for i, l := range m.Layers {
		own := storeLayer(l.UUID, l.Created)
		switch {
		case l.UUID == uuid.Nil || seen[l.UUID]:
			return fmt.Errorf("layer %d: uuid %s is zero or a duplicate", i, l.UUID)
		case l.DataOffset < 0 || l.DataOffset > layer.MaxSize:
			return fmt.Errorf("layer %d: data-offset %d", i, l.DataOffset)
		case l.inStore() && (l.Map != own.Map || l.Data != own.Data || l.DataOffset != 0):
			return fmt.Errorf("layer %d: map: expected %s or an absolute path, found %s", i,
				own.Map, l.Map)
		case !l.inStore() && !filepath.IsAbs(l.Data):
			return fmt.Errorf("layer %d: data: expected an absolute path, found %s", i, l.Data)
		case l.Tag != "" && CheckName("tag", l.Tag) != nil:
			return fmt.Errorf("layer %d: tag %q", i, l.Tag)
		case l.Tag != "" && (tags[l.Tag] || i == len(m.Layers)-1):
			return fmt.Errorf("layer %d: tag %q: expected once in a stack, and not on the head", i,
				l.Tag)
		case l.Sealed != nil && i == len(m.Layers)-1:
			return fmt.Errorf("layer %d: sealed: expected none, for it is the head", i)
		}
		seen[l.UUID], tags[l.Tag] = true, true
	}
	return nil
}

// Disk reads the manifest of a disk. Errors: ErrNotFound, ErrRefused (damaged).
func (s *Store) Disk(name string) (*Manifest, error) {
	if err := CheckName("disk", name); err != nil {
		return nil, err
	}
	m := new(Manifest)
	err := s.readNamed("disk", name, m, func() error { return m.check(name) })
	if err != nil {
		return nil, err
	}
	return m, nil
}

// readNamed reads the document of a disk or an image. Errors: ErrNotFound; ErrRefused if the
// directory exists without the document.
func (s *Store) readNamed(kind, name string, v any, check func() error) error {
	dir, file, what := disksDir, diskFile, "manifest of the disk"
	if kind == "image" {
		dir, file, what = imagesDir, imageFile, "description of the image"
	}
	path := s.path(dir, name, file)
	for range 2 { // it may be removed and created again between the two calls
		err := s.readDocument(path, v, check)
		if err != nil {
			if t := s.notDirectory(kind, name); t != nil {
				return t.Err()
			}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return s.adviseName(kind, path, err)
		}
		if exists, serr := s.exists(s.path(dir, name)); serr == nil && !exists {
			return s.notFound(kind, name)
		}
	}
	return refused(path, what, "a file", "none",
		"restore it from a backup; "+missingAdvice[kind])
}

// missingAdvice says, for a missing document, what is still there.
var missingAdvice = map[string]string{
	"disk":  "the layers stay, for check removes none while a manifest is missing",
	"image": "disks on it need the same content",
}

// notFound returns the error for a missing disk or image. It says whether the name belongs to the
// other kind. For a NotDirectory it is an ErrRefused.
func (s *Store) notFound(kind, name string) error {
	for _, kind := range []string{KindDisk, KindImage} {
		if t := s.notDirectory(kind, name); t != nil {
			return t.Err()
		}
	}
	other, dir := "an image", imagesDir
	if kind == "image" {
		other, dir = "a disk", disksDir
	}
	if exists, err := s.exists(s.path(dir, name)); err == nil && exists {
		return fmt.Errorf("%s %q %w in store %s: it is %s", kind, name, ErrNotFound,
			shell.Text(s.dir), other)
	}
	return fmt.Errorf("%s %q %w in store %s (%s shows what is there)", kind, name, ErrNotFound,
		shell.Text(s.dir), s.command("list"))
}

// writeDocument durably replaces one of the store's JSON files.
func (s *Store) writeDocument(path string, v any) error {
	data, err := document(v)
	if err != nil {
		return err
	}
	return s.fs.WriteFileAtomic(path, data, filePerm)
}

// document returns the text of a manifest or an image's description.
func document(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	return append(data, '\n'), err
}

// Disks reads all manifests in the order of names. It skips unreadable ones and joins their errors.
func (s *Store) Disks() ([]*Manifest, error) {
	return readAll(s, disksDir, s.Disk)
}

// DiskNames returns the sorted names of the disks. Their manifests may be damaged.
func (s *Store) DiskNames() ([]string, error) { return s.names(disksDir) }

// ImageNames returns the sorted names of the images.
func (s *Store) ImageNames() ([]string, error) { return s.names(imagesDir) }

func layerObject(id uuid.UUID) string { return "layer " + id.String() }
