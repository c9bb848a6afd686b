package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"cowblk/cow/finding"
	"cowblk/cow/imagefile"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// Image is an imported base: the content of image.json.
type Image struct {
	Version     int               `json:"version"`
	Name        string            `json:"name"`
	Size        int64             `json:"size"`                   // bytes, of the guest's disk
	SHA256      string            `json:"sha256,omitempty"`       // of the whole content with holes; may be empty if ChunkSHA256 is set
	ChunkSHA256 string            `json:"chunk-sha256,omitempty"` // see imagefile.Digest; empty: imported by an earlier version
	Fingerprint layer.Fingerprint `json:"fingerprint"`            // of the content
	// Identity is the state of the data file when its content was last verified.
	Identity vfs.Identity        `json:"identity"`
	Source   string              `json:"source"`            // path of the imported file; Go-quoted if it holds unprintable characters
	Format   string              `json:"format"`            // of the source: raw or qcow2
	Backing  []imagefile.Backing `json:"backing,omitempty"` // backing files of a qcow2, from the top down; their content is in the image
	Imported time.Time           `json:"imported"`
	// MayIgnore is as in Manifest.
	MayIgnore json.RawMessage `json:"may-ignore,omitempty"`
}

func (m *Image) check(name string) error {
	switch {
	case m.Name != name:
		return &nameError{expected: name, found: m.Name}
	case m.Size <= 0 || m.Size%layer.SectorSize != 0 || m.Size > layer.MaxSize:
		return fmt.Errorf("size: expected a positive multiple of 512 up to 2^60, found %d", m.Size)
	case m.SHA256 == "" && m.ChunkSHA256 == "":
		return errors.New("sha256 and chunk-sha256: expected at least one, found none")
	case m.SHA256 != "" && !isDigest(m.SHA256):
		return fmt.Errorf("sha256: expected 64 lower-case hexadecimal digits, found %q", m.SHA256)
	case m.ChunkSHA256 != "" && !isDigest(m.ChunkSHA256):
		return fmt.Errorf("chunk-sha256: expected 64 lower-case hexadecimal digits, found %q",
			m.ChunkSHA256)
	case m.Identity.Size < 0:
		return fmt.Errorf("identity.size: expected a number from 0, found %d", m.Identity.Size)
	case m.Fingerprint.IsZero():
		return errors.New("fingerprint: expected one, found none")
	}
	if err := checkFormat(m.Format); err != nil {
		return err
	}
	for i, b := range m.Backing {
		if err := checkFormat(b.Format); err != nil {
			return fmt.Errorf("backing[%d]: %w", i, err)
		}
	}
	return nil
}

func checkFormat(format string) error {
	if format != imagefile.Raw && format != imagefile.Qcow2 {
		return fmt.Errorf("format: expected %s or %s, found %q", imagefile.Raw, imagefile.Qcow2,
			format)
	}
	return nil
}

// checkSize compares the length of the image's data file at path with image.json.
func (m *Image) checkSize(path string, now vfs.Identity) error {
	if now.Size != m.Size {
		return refused(path, "size of the image", finding.Bytes(m.Size), finding.Bytes(now.Size),
			adviceImage)
	}
	return nil
}

func isDigest(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// compare reads the image's content from f and compares it with the recorded digest. It does not
// read holes, except for images without a chunk digest, of an earlier version.
func (m *Image) compare(ctx context.Context, f vfs.File, progress func(done int64)) error {
	what, expected := "chunk digest of the image", m.ChunkSHA256
	var found string
	var err error
	if expected != "" {
		found, err = imagefile.Digest(ctx, f, m.Size, progress)
	} else {
		what, expected = "SHA-256 of the image", m.SHA256
		found, err = imagefile.SHA256(ctx, f, m.Size, progress)
	}
	if err != nil {
		return fmt.Errorf("image %q: %w", m.Name, err)
	}
	if found != expected {
		return refused(f.Name(), what, expected, found, adviceImage)
	}
	return nil
}

// Image reads the description of an image. Errors: ErrNotFound, ErrRefused (damaged).
func (s *Store) Image(name string) (*Image, error) {
	if err := CheckName("image", name); err != nil {
		return nil, err
	}
	m := new(Image)
	err := s.readNamed("image", name, m, func() error { return m.check(name) })
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Images reads all images in the order of names; errors as Disks.
func (s *Store) Images() ([]*Image, error) {
	return readAll(s, imagesDir, s.Image)
}

// ImageData returns the path of an image's raw content.
func (s *Store) ImageData(name string) string { return s.path(imagesDir, name, dataFile) }

// allocated returns the space of a file on its file system, in bytes; 0 if unknown.
func (s *Store) allocated(path string) int64 {
	st, err := s.fs.Stat(path)
	if err != nil {
		return 0
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}

const (
	adviceImage      = "restore the image's data file from a backup"
	adviceNoImage    = "put the image's directory back; importing another under this name does not help"
	adviceOtherImage = "this is another image of the same name: put the original one back"
)
