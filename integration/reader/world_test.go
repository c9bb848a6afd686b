//go:build integration

package reader

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"cowblk/cow/store"
	"cowblk/internal/test"
)

// run runs a program to its end and returns its standard output, exit code and standard error.
func run(t *testing.T, name string, args ...string) (out []byte, code int, log string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %v: %v", name, args, err)
	}
	return stdout.Bytes(), c.ProcessState.ExitCode(), stderr.String()
}

func (w *world) reader(args ...string) (out []byte, code int, log string) {
	w.t.Helper()
	return run(w.t, "python3", append([]string{"cowreader.py", args[0], w.store.Dir()},
		args[1:]...)...)
}

// warned decodes the only warning that the reader printed; the zero value if there is none.
func warned(log string) (warning struct {
	Unclean   bool `json:"unclean"`
	SharedMap bool `json:"shared-map"`
}) {
	_ = json.Unmarshal([]byte(log), &warning)
	return warning
}

// export returns the content that an NBD client reads from cowblk's export, and the export's log.
func (w *world) export(ref string) (content []byte, log string) {
	w.t.Helper()
	socket := filepath.Join(w.dir, "nbd")
	defer os.Remove(socket)
	c := exec.Command(program, "--store", w.store.Dir(), "export", ref, "--listen", "unix:"+socket)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	stdout, err := c.StdoutPipe()
	test.Must(w.t, err)
	test.Must(w.t, c.Start())
	var line [1]byte // the URI is written when a client can connect
	if _, err := stdout.Read(line[:]); err != nil {
		_ = c.Wait()
		w.t.Fatalf("export %s: %v: %s", ref, err, stderr.String())
	}
	out := filepath.Join(w.dir, "exported")
	if _, code, log := run(w.t, "nbdcopy", fmt.Sprintf("nbd+unix:///%s?socket=%s", ref, socket),
		out); code != 0 {
		w.t.Errorf("nbdcopy of %s: exit code %d: %s", ref, code, log)
	}
	test.Must(w.t, c.Process.Signal(syscall.SIGTERM))
	_ = c.Wait()
	content, err = os.ReadFile(out)
	test.Must(w.t, err)
	test.Must(w.t, os.Remove(out))
	return content, stderr.String()
}

// findings is the result of a checker for one disk.
type findings struct {
	Problems []string `json:"problems"`
	Blocks   uint64   `json:"blocks"`
	Unclean  bool     `json:"unclean"`
	InUse    bool     `json:"in-use"`
}

func (w *world) readerCheck() map[string]findings {
	w.t.Helper()
	out, code, log := w.reader("check")
	if code != 0 {
		w.t.Fatalf("the reader's check: exit code %d: %s", code, log)
	}
	found := map[string]findings{}
	test.Must(w.t, json.Unmarshal(out, &found))
	return found
}

// check returns the findings of "cowblk check --full" for each disk.
func (w *world) check() map[string]findings {
	w.t.Helper()
	out, _, log := run(w.t, program, "--store", w.store.Dir(), "--json", "check", "--full")
	var r store.CheckReport
	if err := json.Unmarshal(out, &r); err != nil {
		w.t.Fatalf("check: %v: %s%s", err, out, log)
	}
	found := map[string]findings{}
	for _, k := range r.Reports {
		if k.Kind != store.KindDisk {
			continue
		}
		f := findings{Blocks: k.Blocks, Unclean: k.Unclean, InUse: k.Serving != nil}
		for _, p := range k.Problems {
			if p.Object != "temporary file" {
				f.Problems = append(f.Problems, p.What+": "+p.Found)
			}
		}
		if k.Error != "" {
			f.Problems = append(f.Problems, k.Error)
		}
		found[k.Name] = f
	}
	return found
}

func (w *world) compareChecks(what string) {
	w.t.Helper()
	mine, its := w.check(), w.readerCheck()
	for name, a := range mine {
		b := its[name]
		if (len(a.Problems) > 0) != (len(b.Problems) > 0) {
			w.t.Errorf("%s: disk %s: check finds %q, the reader %q", what, name, a.Problems,
				b.Problems)
		}
		if len(a.Problems) == 0 && (a.Blocks != b.Blocks || a.Unclean != b.Unclean) && !a.InUse {
			w.t.Errorf("%s: disk %s: check finds %d blocks, unclean %v; the reader %d, %v", what,
				name, a.Blocks, a.Unclean, b.Blocks, b.Unclean)
		}
	}
	if len(mine) != len(its) {
		w.t.Errorf("%s: check lists %d disks, the reader %d", what, len(mine), len(its))
	}
}

// patch changes n bytes of a file.
func (w *world) patch(path string, off int64, n int, change func([]byte)) {
	w.t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	test.Must(w.t, err)
	defer f.Close()
	p := make([]byte, n)
	_, err = f.ReadAt(p, off)
	test.Must(w.t, err)
	change(p)
	_, err = f.WriteAt(p, off)
	test.Must(w.t, err)
}
