package harness

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Binary returns the path of the cowblk binary: $COWBLK_BINARY, else the one that "make build"
// leaves at the top of the source tree.
func Binary() (string, error) {
	if b := os.Getenv("COWBLK_BINARY"); b != "" {
		return b, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	b := filepath.Join(root, "cowblk")
	if _, err := os.Stat(b); err != nil {
		return "", fmt.Errorf("%w: run 'make build' first", err)
	}
	return b, nil
}

// Store runs the cowblk binary on one store.
type Store struct {
	Binary string
	Dir    string
}

// NewStore returns a Store for dir, which need not exist.
func NewStore(dir string) (*Store, error) {
	b, err := Binary()
	if err != nil {
		return nil, err
	}
	return &Store{Binary: b, Dir: dir}, nil
}

// Cmd returns a command that runs cowblk with these arguments.
func (s *Store) Cmd(args ...string) *exec.Cmd {
	return exec.Command(s.Binary, append([]string{"--store", s.Dir}, args...)...)
}

// Run runs one cowblk command to its end and returns its standard output.
func (s *Store) Run(ctx context.Context, args ...string) (string, error) {
	full := append([]string{"--store", s.Dir}, args...)
	cmd := exec.CommandContext(ctx, s.Binary, full...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("cowblk %s: %w\n%s", strings.Join(args, " "), err,
			stderr.String())
	}
	return stdout.String(), nil
}

// JSON runs a command with --json and decodes its output into out.
func (s *Store) JSON(ctx context.Context, out any, args ...string) error {
	text, err := s.Run(ctx, append([]string{"--json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(text), out); err != nil {
		return fmt.Errorf("cowblk --json %s: %w in\n%s", strings.Join(args, " "), err, text)
	}
	return nil
}

// Image has the members of "cowblk info IMAGE --json" that the tests use.
type Image struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"` // of the content; recorded by import --sha256
	Size   int64  `json:"size"`   // bytes
}

// CheckImage reads an image's data and returns an error unless its SHA-256 is the one recorded at
// import.
func (s *Store) CheckImage(ctx context.Context, name string) error {
	var image Image
	if err := s.JSON(ctx, &image, "info", name); err != nil {
		return err
	}
	f, err := os.Open(image.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != image.SHA256 {
		return fmt.Errorf("image %s (%s): SHA-256 at import %s, now %s: its bytes have changed",
			name, image.Path, image.SHA256, got)
	}
	return nil
}

// Disk has the members of "cowblk info DISK --json" that the tests use.
type Disk struct {
	Socket string  `json:"socket"`
	Usage  []Usage `json:"usage"` // layers, oldest first
}

// Usage is the space that one layer uses.
type Usage struct {
	State     string `json:"state"`     // "sealed" or "head"
	Owned     int64  `json:"owned"`     // owned blocks, in bytes
	Allocated int64  `json:"allocated"` // bytes on the file system
}

// Head returns the usage of the writable layer.
func (d Disk) Head() Usage { return d.Usage[len(d.Usage)-1] }
