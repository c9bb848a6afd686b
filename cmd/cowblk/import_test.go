package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/imagefile"
	"cowblk/cow/store"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// A signal ends an import whose file does not answer, and the message is correct.
func TestImportOfHangingFile(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	test.Must(t, os.WriteFile(src, make([]byte, 4096), 0o600))
	synctest.Test(t, func(t *testing.T) {
		asked, release := make(chan struct{}), make(chan struct{})
		first := sync.OnceFunc(func() { close(asked) })
		// Reads of the file hang, as on a network file system whose server is gone.
		files := faultfs.Over(vfs.OS{}, func(c faultfs.Call) faultfs.Fault {
			if c.Op == "read" && c.Name == src {
				first()
				<-release
			}
			return faultfs.Fault{}
		})
		s, err := store.Open(filepath.Join(dir, "store"), store.Options{FS: files,
			Getenv: func(string) string { return "" }})
		test.Must(t, err)
		ctx, signal := context.WithCancel(t.Context())
		go func() {
			<-asked
			signal()
		}()
		_, err = importInterruptible(ctx, s, src, "img", store.ImportOptions{})
		if !errors.Is(err, context.Canceled) || exitCode(err) != exitInterrupted ||
			!strings.Contains(err.Error(), "does not answer") {
			t.Errorf("error %v", err)
		}
		close(release)
	})
}

// --blk-file accepts disk content and refuses containers, compressed files and archives by name.
func TestBlkFileFormats(t *testing.T) {
	for _, tt := range []struct {
		name, found string // found: in the error; empty: accepted
		data        []byte
	}{
		{"raw", "", magic("\x55\xaa", 510)},
		{"LUKS", "", magic("LUKS\xba\xbe\x00\x02", 0)},
		{"qcow2", "found qcow2\n  import it", magic("QFI\xfb\x00\x00\x00\x03", 0)},
		{"qcow", "found qcow\n", magic("QFI\xfb\x00\x00\x00\x01", 0)},
		{"VMDK", "found vmdk", magic("KDMV", 0)},
		{"VHD of fixed size", "found vpc", magic("conectix", -512)},
		{"xz", "found xz", magic("\xfd7zXZ\x00", 0)},
		{"zip", "found zip", magic("PK\x03\x04", 0)},
		{"HTML", "found HTML", magic("<!DOCTYPE html>", 0)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript(t)
			test.Must(t, os.WriteFile(filepath.Join(s.dir, "a b"), tt.data, 0o600))
			if tt.found == "" {
				test.Check(t, imagefile.CheckRaw(filepath.Join(s.dir, "a b"), "word"))
				return
			}
			out := strings.ReplaceAll(s.command("cowblk serve --blk-file 'a b' --socket-path s"),
				"2> ", "")
			if !strings.Contains(out, tt.found) || !strings.Contains(out, "--format raw") ||
				!strings.Contains(out, "exit 5") {
				t.Errorf("served, or refused with %q", out)
			}
			if strings.Contains(out, "cowblk import") != (tt.name == "qcow2") ||
				tt.name != "HTML" && !strings.Contains(out, " '"+filepath.Join(s.dir, "a b")+"'") {
				t.Errorf("advice: %q", out)
			}
		})
	}
	s := newScript(t)
	for _, name := range []string{"m", "d"} {
		test.Must(t, os.WriteFile(filepath.Join(s.dir, name), make([]byte, 16384), 0o600))
	}
	for line, want := range map[string]string{
		"cowblk serve --blk-file nosuch --socket-path s":                       "no such file",
		"cowblk serve --blk-file . --socket-path s":                            "a directory",
		"cowblk serve --blk-file /dev/zero --format raw --socket-path s":       "a character device",
		"cowblk serve --blk-file /proc/self/environ --socket-path s":           "the kernel makes up",
		"cowblk serve vm1 --format raw":                                        "--format is for",
		"cowblk serve --blk-file nosuch --format qcow2 --socket-path s":        "expected raw",
		"cowblk create vm1 --base /dev/zero":                                   "character device",
		"cowblk create vm1 --table '0 8 cow /dev/zero 0 m d 0'":                "a character device",
		"cowblk create vm1 --size 1M --base ''":                                "empty string",
		"cowblk import '' x":                                                   "empty name",
		"cowblk import --format vdi nosuch x":                                  "raw or qcow2",
		"cowblk create vm1 --force --base /proc/self/environ --size 1M --json": "the kernel makes up",
	} {
		if out := s.command(line); !strings.Contains(out, want) || !strings.Contains(out, "exit ") {
			t.Errorf("%s: %q", line, out)
		}
	}
}
