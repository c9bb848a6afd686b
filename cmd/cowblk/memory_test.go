package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/internal/test"
)

// A QEMU guest whose memory is not shared hangs before its boot loader: the log explains it. With
// shared memory there is no such message.
func TestMemoryNotShared(t *testing.T) {
	binary := os.Getenv(qemuEnv)
	if binary == "" {
		binary = "qemu-system-x86_64"
	}
	if _, err := exec.LookPath(binary); err != nil {
		t.Skipf("%s is not installed; make deps installs it", binary)
	}
	dir := storeWith(t, "1M", "a")
	socket := filepath.Join(dir, "run", "a.sock")
	memfd := func(share string) []string {
		return []string{"-machine", "q35,memory-backend=mem", "-m", "64", "-object",
			"memory-backend-memfd,id=mem,size=64M,share=" + share}
	}
	for _, tc := range []struct {
		name, want string
		memory     []string
	}{
		{"no backend", "the front-end shares no memory", []string{"-machine", "q35", "-m", "64"}},
		{"share=off", "its rings stay empty", memfd("off")},
		{"share=on", "requests came", memfd("on")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "log")
			file, err := os.Create(log)
			test.Must(t, err)
			defer file.Close()
			p := start(t, dir, func(c *exec.Cmd) { c.Stderr = file }, "serve", "a")
			dial(t, socket).Close()
			q := exec.Command(binary, append(tc.memory, "-accel", "tcg", "-nodefaults", "-display",
				"none",
				"-chardev", "socket,id=c,path="+socket, "-device",
				"vhost-user-blk-pci,chardev=c,bootindex=1")...)
			test.Must(t, q.Start())
			defer func() { q.Process.Kill(); q.Wait() }()
			test.Eventually(t, tc.want, func() bool {
				b, err := os.ReadFile(log)
				test.Must(t, err)
				text := string(b)
				advice := strings.Contains(text, "memory-backend-memfd,id=mem,size=SIZE,share=on")
				if tc.want != "requests came" {
					return advice && strings.Contains(text, tc.want)
				}
				if advice {
					t.Fatal(text)
				}
				return strings.Contains(command(t, dir, "info", "a"), "connected, ") &&
					served(t, dir)
			})
			p.end(t)
		})
	}
}

// served reports whether disk a has had requests.
func served(t *testing.T, dir string) bool {
	t.Helper()
	return statsOf(t, filepath.Join(dir, "run", "a.ctl")).Reads > 0
}

func statsOf(t *testing.T, ctl string) daemon.DiskStats {
	t.Helper()
	c, err := control.Dial(ctl, waitTimeout)
	test.Must(t, err)
	var all []daemon.DiskStats
	if err := c.Run(t.Context(), "query-cow-stats", nil, &all); err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	return all[0]
}
