package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cowblk/internal/test"
)

// Another user puts a link to a file of root's in the place of a layer's data, which root has moved
// to that user's directory. No command reads or writes that file.
func TestLayerDataInAnotherUsersDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs two users: run as root")
	}
	for _, moved := range []string{"", "data"} {
		dir := shortDir(t)
		store, big, secret := filepath.Join(dir, "s"), filepath.Join(dir, "big"),
			filepath.Join(dir, "secret")
		test.Must(t, os.Chmod(dir, 0o755))
		command(t, store, "create", "d", "--size", "64K")
		layers, err := os.ReadDir(filepath.Join(store, "layers"))
		test.Must(t, err)
		test.Must(t, os.Mkdir(big, 0o755))
		path, to := filepath.Join(store, "layers", layers[0].Name(), moved), filepath.Join(big, "l")
		test.Must(t, os.Rename(path, to))
		test.Must(t, os.Symlink(to, path))
		chownToNobody(t, big)
		content := append([]byte("top secret"), make([]byte, 64<<10-10)...)
		test.Must(t, os.WriteFile(secret, content, 0o600))
		data := filepath.Join(to, "data")
		if moved != "" {
			data = to
		}
		other := exec.Command("sh", "-c", `mv "$1" "$1.x" && ln -s "$2" "$1"`, "sh", data, secret)
		other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody,
			Gid: nobody}}
		if out, err := other.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		s := &untrustedStore{dir: dir, store: store}
		for _, line := range []string{"serve d", "serve d --read-only", "promote d --tag t",
			"export d --listen unix:" + dir + "/nbd"} {
			if code, out := s.run(strings.Fields(line)...); code == exitOK || !strings.Contains(out,
				"user nobody can lead this process to any file through it") {
				t.Errorf("%s: exit %d: %s", line, code, out)
			}
		}
		if code, out := s.run("check"); code == exitOK || !strings.Contains(out,
			"directories on the way to the file") {
			t.Errorf("check: exit %d: %s", code, out)
		}
		if now, err := os.ReadFile(secret); err != nil || !bytes.Equal(now, content) {
			t.Errorf("root's file was changed: %v", err)
		}
	}
}
