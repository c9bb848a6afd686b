package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cowblk/backend/control"
	"cowblk/internal/test"
)

// At the limit of open files a process refuses to promote, says what to do, and serves on.
func TestPromotionAtTheLimitOfOpenFiles(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	limited := func(c *exec.Cmd) {
		c.Args = append([]string{"sh", "-c", `ulimit -n 64; exec "$0" "$@"`, c.Path}, c.Args[1:]...)
		c.Path = "/bin/sh"
	}
	p := start(t, dir, limited, "serve", "a")
	f := dial(t, filepath.Join(dir, "run", "a.sock"))
	c, err := control.Dial(filepath.Join(dir, "run", "a.ctl"), 5*time.Second)
	test.Must(t, err)
	made := 0
	for ; err == nil && made < 64; made++ {
		writeAt(t, f, 4096, pattern(byte(made), 4096))
		err = c.Run(context.Background(), "cow-promote", map[string]any{"disks": []string{"a"},
			"tag": fmt.Sprintf("t%d", made)}, nil)
	}
	if err == nil {
		t.Fatal("64 layers fit into 64 descriptors")
	}
	wantAt(t, f, 4096, pattern(byte(made-1), 4096))
	writeAt(t, f, 8192, pattern(7, 512))
	f.Close()
	p.end(t)

	p = start(t, dir, limited, "serve", "a")
	if err := p.cmd.Wait(); err == nil || !strings.Contains(p.log.String(), "LimitNOFILE") {
		t.Errorf("serve under the limit: %v\n%s", err, p.log.String())
	}
	p = start(t, dir, nil, "serve", "a")
	wantAt(t, dial(t, filepath.Join(dir, "run", "a.sock")), 4096, pattern(byte(made-1), 4096))
	p.end(t)
}
