package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/digitalocean/go-qemu/qmp"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/internal/test"
)

// The files of a disk, its directory, or the whole store are removed or replaced while the disk is
// served. The guest continues on the open files. A promotion fails completely with an error that
// names what is missing. The process ends in order at SIGTERM. Confinement makes no difference.
func TestStoreRemovedUnderneath(t *testing.T) {
	for _, c := range []struct {
		name   string
		remove func(st string) error
		word   string // expected in the promotion's error
	}{
		{"store", os.RemoveAll, "was removed"},
		{"store moved away", func(st string) error { return os.Rename(st, st+".away") },
			"was removed"},
		{"disk", func(st string) error { return os.RemoveAll(filepath.Join(st, "disks", "a")) },
			"was removed"},
		{"all disks", func(st string) error { return os.RemoveAll(filepath.Join(st, "disks")) },
			"was removed"},
		{"copied back", func(st string) error {
			return exec.Command("sh", "-ec", `cp -a "$0" "$0.copy"; rm -r "$0"; mv "$0.copy" "$0"`,
				st).Run()
		}, "replaced"},
		{"layers", func(st string) error { return os.RemoveAll(filepath.Join(st, "layers")) },
			"was removed"},
		{"head", func(st string) error {
			maps, err := filepath.Glob(filepath.Join(st, "layers", "*"))
			return errors.Join(err, os.RemoveAll(maps[0]))
		}, "was removed"},
		{"head copied back", func(st string) error {
			return exec.Command("sh", "-ec", `cd "$0"/layers/*; cp -a data copy; mv copy data`,
				st).Run()
		}, "replaced"},
	} {
		for _, mode := range []string{"on", "off"} {
			t.Run(c.name+"/sandbox "+mode, func(t *testing.T) {
				t.Parallel()
				st := filepath.Join(shortDir(t), "st")
				command(t, st, "create", "a", "--size", "4M")
				p := start(t, st, nil, "serve", "a", "--sandbox", mode)
				f := dial(t, filepath.Join(st, "run", "a.sock"))
				// the socket file may be gone, too
				ctl := dialRaw(t, filepath.Join(st, "run", "a.ctl"))
				writeAt(t, f, 0, pattern(1, 8192))
				before := listing(t, st)
				test.Must(t, c.remove(st))
				left := listing(t, st)
				if fmt.Sprint(before) == fmt.Sprint(left) && c.name != "copied back" &&
					c.name != "head copied back" {
					t.Fatalf("nothing was removed: %v", left)
				}
				writeAt(t, f, 4096, pattern(2, 512))
				writeAt(t, f, 1<<20, pattern(3, 4096))
				test.Check(t, f.Driver(0).Flush(), "flush")
				err := ctl.run("cow-promote", daemon.PromoteArgs{Disks: []string{"a"}, Tag: "t"})
				if err == nil || !strings.Contains(err.Error(), c.word) ||
					!strings.Contains(err.Error(), `"a"`) {
					t.Errorf("promotion: %v", err)
				}
				if now := listing(t, st); fmt.Sprint(now) != fmt.Sprint(left) {
					t.Errorf("the promotion has left something: %v, before it there was %v", now,
						left)
				}
				wantAt(t, f, 0, append(append(pattern(1, 4096), pattern(2, 512)...),
					pattern(1, 3584)...))
				wantAt(t, f, 1<<20, pattern(3, 4096))
				f.Close()
				p.end(t)
			})
		}
	}
}

// listing returns the names and contents of a directory, without sockets and the contents of lock
// files.
func listing(t *testing.T, dir string) (names []string) {
	t.Helper()
	out, err := exec.Command("find", dir, "!", "-type", "s").Output()
	if err != nil && len(bytes.TrimSpace(out)) > 0 {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

// rawControl is a persistent connection to a control socket.
type rawControl struct {
	net.Conn
	in *json.Decoder
}

func dialRaw(t *testing.T, path string) *rawControl {
	t.Helper()
	conn, err := net.Dial("unix", path)
	test.Must(t, err)
	return rawOn(t, conn)
}

// run executes one command and skips the greeting and events.
func (c *rawControl) run(command string, args any) error {
	if err := json.NewEncoder(c).Encode(qmp.Command{Execute: command, Args: args}); err != nil {
		return err
	}
	for {
		var m struct {
			Return json.RawMessage
			Error  *control.Error
		}
		switch err := c.in.Decode(&m); {
		case err != nil:
			return err
		case m.Error != nil:
			return m.Error
		case m.Return != nil:
			return nil
		}
	}
}
