package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Root returns the top of the source tree: the nearest directory at or above the working directory
// that holds go.mod and this module, integration.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "integration", "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New(
				"no integration/go.mod here or above: run from within the source tree")
		}
		dir = up
	}
}

// Artefact returns the directory of a shared file set ("golden", "bios", "quick", "qemu-next",
// "bonnie" and others; see integration/artefacts/build). It builds the set first if the cache does
// not have it. Concurrent callers wait for one build.
func Artefact(ctx context.Context, name string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "integration", "artefacts", "build"), name)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// Golden is the Debian image of the tests and its boot files.
type Golden struct {
	Raw, QCOW2     string // the same disk in two formats
	Kernel, Initrd string // Debian's kernel and initrd, for -kernel
	Quick          string // initramfs for a guest without systemd
}

// NewGolden returns the golden image. It builds the image if it is missing (about 90 s).
func NewGolden(ctx context.Context) (Golden, error) {
	image, err := Artefact(ctx, "golden")
	if err != nil {
		return Golden{}, err
	}
	quick, err := Artefact(ctx, "quick")
	if err != nil {
		return Golden{}, err
	}
	return Golden{
		Raw:    filepath.Join(image, "golden.raw"),
		QCOW2:  filepath.Join(image, "golden.qcow2"),
		Kernel: filepath.Join(image, "vmlinuz"),
		Initrd: filepath.Join(image, "initrd.img"),
		Quick:  filepath.Join(quick, "initrd.img"),
	}, nil
}

// BIOSImage returns the golden image's root as a raw image that boots by BIOS.
func BIOSImage(ctx context.Context) (string, error) {
	dir, err := Artefact(ctx, "bios")
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "bios.raw"), nil
}
