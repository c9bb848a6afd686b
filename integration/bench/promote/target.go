package promote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
	"cowblk/vhost/frontend"
)

// patience bounds every wait.
const patience = 2 * time.Minute

// target is a running back-end with one disk.
type target struct {
	dir        string
	cmd        *exec.Cmd
	log        bytes.Buffer
	frontend   *frontend.Frontend
	size       int64
	cancel     context.CancelFunc
	promote    func() error // returns with the reply
	waitSealed func() error // returns when the promotion is complete
}

func (s *settings) start(sc *scenario) (t *target, err error) {
	t = &target{cancel: func() {}}
	if t.dir, err = os.MkdirTemp(s.dir, "cowbench"); err != nil {
		return nil, err
	}
	if sc.qemu {
		err = t.startQEMU(s, sc)
	} else {
		err = t.startCowblk(s, sc)
	}
	if err != nil {
		return nil, errors.Join(err, t.end())
	}
	return t, nil
}

func (t *target) end() error {
	var errs []error
	if t.frontend != nil {
		errs = append(errs, t.frontend.Close())
	}
	t.cancel()
	if t.cmd != nil {
		errs = append(errs, t.cmd.Process.Signal(syscall.SIGTERM))
		if err := t.cmd.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w\n%s", t.cmd.Path, err, t.log.String()))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(t.dir))...)
}

// freeSealed frees the space of sealed layers that use more than bytes (0: of none). Nobody reads
// them again, and the file system's size then does not bound the number of promotions.
func (t *target) freeSealed(bytes int64) error {
	if bytes == 0 {
		return nil // do not list what may be a thousand layers
	}
	files, err := filepath.Glob(filepath.Join(t.dir, "layers", "*", "data"))
	if err != nil {
		return err
	}
	for _, name := range files {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			return fmt.Errorf("stat %s: %w", name, err)
		}
		if st.Blocks*512 <= bytes {
			continue
		}
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0,
			st.Size)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("free the space of %s: %w", name, err)
		}
	}
	return nil
}

func (t *target) launch(name string, args ...string) error {
	t.cmd = exec.Command(name, args...)
	t.cmd.Stderr = &t.log
	if err := t.cmd.Start(); err != nil {
		t.cmd = nil
		return err
	}
	return nil
}

// connect connects the front-end as soon as the socket exists, and turns the write cache on.
func (t *target) connect(socket string) (err error) {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		t.frontend, err = frontend.Dial(socket, frontend.Options{QueueSize: 256, Timeout: patience})
		if err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		return err
	}
	t.size = t.frontend.Capacity()
	return t.frontend.SetConfig(32, []byte{1}) // virtio 1.2, 5.2.4: writeback
}

func (t *target) startCowblk(s *settings, sc *scenario) error {
	if out, err := exec.Command(s.cowblk, "--store", t.dir, "create", "disk", "--size",
		sc.size).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if err := t.launch(s.cowblk, "--store", t.dir, "serve", "disk"); err != nil {
		return err
	}
	if err := t.connect(filepath.Join(t.dir, "run", "disk.sock")); err != nil {
		return err
	}
	client, err := control.Dial(filepath.Join(t.dir, "run", "disk.ctl"), 0)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.cancel = cancel
	events, err := client.Events(ctx)
	if err != nil {
		return err
	}
	n := 0
	t.promote = func() error {
		n++
		return client.Run(ctx, "cow-promote", map[string]any{"disks": []string{"disk"},
			"tag": fmt.Sprintf("t%d", n)}, nil)
	}
	t.waitSealed = func() error {
		limit := time.After(patience)
		for {
			select {
			case e := <-events:
				if e.Event == "COW_SEALED" {
					return nil
				}
			case <-limit:
				return errors.New("the former head was not sealed in time")
			}
		}
	}
	return nil
}

func (t *target) startQEMU(s *settings, sc *scenario) error {
	image := filepath.Join(t.dir, "0.qcow2")
	out, err := exec.Command("qemu-img", "create", "-f", "qcow2", image, sc.size).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	socket, monitor := filepath.Join(t.dir, "disk.sock"), filepath.Join(t.dir, "qmp")
	if err := t.launch(s.qsd,
		"--blockdev", "driver=file,node-name=f0,aio=io_uring,filename="+image,
		"--blockdev", "driver=qcow2,node-name=n0,file=f0",
		"--export", "type=vhost-user-blk,id=e,node-name=n0,writable=on,addr.type=unix,addr.path="+
			socket,
		"--chardev", "socket,id=c,server=on,wait=off,path="+monitor, "--monitor",
		"chardev=c"); err != nil {
		return err
	}
	if err := t.connect(socket); err != nil {
		return err
	}
	client, err := control.Dial(monitor, 0)
	if err != nil {
		return err
	}
	n := 0
	t.promote = func() error {
		n++
		return client.Run(context.Background(), "blockdev-snapshot-sync", map[string]any{
			"node-name": fmt.Sprintf("n%d", n-1), "snapshot-node-name": fmt.Sprintf("n%d", n),
			"format":        "qcow2",
			"snapshot-file": filepath.Join(t.dir, fmt.Sprintf("%d.qcow2", n)),
		}, nil)
	}
	t.waitSealed = func() error { return nil }
	return nil
}
