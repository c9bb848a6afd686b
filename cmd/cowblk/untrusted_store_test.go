package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// untrustedStore is a store whose lock files another user can write. They name sockets of root.
type untrustedStore struct {
	dir         string
	store       string
	connections atomic.Int32 // number of connections to the sockets that the lock file names
}

func newUntrustedStore(t *testing.T, change func(s *untrustedStore)) *untrustedStore {
	t.Helper()
	s := &untrustedStore{dir: shortDir(t)}
	test.Must(t, os.Chmod(s.dir, 0o755))
	s.store = filepath.Join(s.dir, "vic", "s")
	command(t, s.store, "create", "d", "--size", "1M")
	command(t, s.store, "promote", "d", "--tag", "t")
	var sockets []string
	for _, name := range []string{"ctl", "sock"} {
		l, err := net.Listen("unix", filepath.Join(s.dir, name))
		test.Must(t, err)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				s.connections.Add(1)
				c.Close()
			}
		}()
		sockets = append(sockets, l.Addr().String())
	}
	lock, err := os.OpenFile(filepath.Join(s.store, "disks", "d", "lock"), os.O_RDWR, 0)
	test.Must(t, err)
	t.Cleanup(func() { lock.Close() })
	test.Must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	text, err := json.Marshal(map[string]any{"pid": os.Getpid(), "control": sockets[0],
		"socket": sockets[1]})
	test.Must(t, err)
	test.Must(t, lock.Truncate(0))
	test.Must(t, test.Err(lock.WriteAt(append(text, '\n'), 0)))
	change(s)
	return s
}

func (s *untrustedStore) run(args ...string) (code int, out string) {
	var b bytes.Buffer
	a := &app{
		in: strings.NewReader(""), out: &b, err: &b, getenv: func(string) string { return "" },
		terminal: func(any) bool { return false }, kvm: func() bool { return false },
	}
	code = run(append([]string{"--store", s.store}, args...), a)
	return code, b.String()
}

// Another user's content of a lock file makes root's commands contact no process: neither a process
// of root, which would be stopped or promoted, nor one of that user, to which QEMU would be
// connected.
func TestLockFilesInUntrustedStores(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs two users: run as root")
	}
	chown := func(path string) {
		t.Helper()
		test.Must(t, os.Chown(path, nobody, nobody))
	}
	for name, change := range map[string]func(s *untrustedStore){
		"another's store": func(s *untrustedStore) { chownToNobody(t, s.store) },
		"in another's directory": func(s *untrustedStore) {
			chown(filepath.Dir(s.store))
		},
		"another's directory in root's": func(s *untrustedStore) {
			chown(filepath.Join(s.store, "disks"))
		},
		"another's disk in root's store": func(s *untrustedStore) {
			chownToNobody(t, filepath.Join(s.store, "disks", "d"))
		},
		"everybody's disk in root's store": func(s *untrustedStore) {
			chmod(t, filepath.Join(s.store, "disks", "d"), 0o777)
		},
		"a group's store": func(s *untrustedStore) { chmod(t, s.store, 0o775) },
		"in a directory that a group shares": func(s *untrustedStore) {
			chmod(t, filepath.Dir(s.store), 0o775|os.ModeSetgid)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newUntrustedStore(t, change)
			for _, line := range []string{
				"stop d", "stop d --whole-process", "promote d --tag u",
				"attach d --qmp unix:/nonexistent/qmp", "detach d --qmp unix:/nonexistent/qmp",
				"resume d", "resume --forget d", "run d --qemu /bin/true", "serve d",
				"serve d --takeover", "serve d --read-only", "qemu-args d", "xml d",
				"watch --timeout 100ms", "watch d --threshold 1 --timeout 100ms", "rm --yes d",
				"rm --yes --damaged d", "rollback --yes d@t",
				"create e --from d@t", "trust-base d", "export d --listen unix:" + s.dir + "/nbd",
				"export d@t --listen unix:" + s.dir + "/nbd",
			} {
				code, out := s.run(strings.Fields(line)...)
				// For a single untrusted disk these commands fail earlier with another error, or
				// check the other disks.
				otherRefusal := strings.Contains(name, "disk in") &&
					slices.ContainsFunc([]string{"watch", "create", "trust-base", "run",
						"rm --yes --damaged"},
						func(begin string) bool { return strings.HasPrefix(line, begin) })
				if !otherRefusal && (code == exitOK || !strings.Contains(out, "can lead") &&
					!strings.Contains(out, "can put")) {
					t.Errorf("%s: exit %d: %s", line, code, out)
				}
			}
			for _, line := range []string{"list", "list --json", "info d", "info d --json", "tree",
				"tree --json", "check", "check d"} {
				_, out := s.run(strings.Fields(line)...)
				if strings.Contains(out, s.dir+"/ctl") {
					t.Errorf("%s: the control socket is believed: %s", line, out)
				}
			}
			if n := s.connections.Load(); n > 0 {
				t.Errorf("%d connections to sockets that another user has named", n)
			}
		})
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	test.Must(t, os.Chmod(path, mode))
}
