package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"cowblk/integration/harness"
)

const image = "debian-12"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "\nthe demo failed:", err)
		os.Exit(1)
	}
}

// tour is the state that the steps share.
type tour struct {
	*narrator
	store  *harness.Store
	golden harness.Golden
	guests []*guest
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "cowblk-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	t := &tour{narrator: &narrator{out: os.Stdout, start: time.Now()}}
	if t.store, err = harness.NewStore(filepath.Join(dir, "store")); err != nil {
		return err
	}
	for _, name := range []string{"left", "right"} {
		t.guests = append(t.guests, &guest{name: name, socket: filepath.Join(dir, name+".sock")})
	}
	for _, step := range []func(context.Context) error{
		t.prepare, t.importAndCreate, t.serveAndWrite, t.secondBoot, t.summary} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// cowblk prints a command, runs it, and prints its output.
func (t *tour) cowblk(ctx context.Context, args ...string) error {
	t.command(args...)
	out, err := t.store.Run(ctx, args...)
	if strings.TrimSpace(out) != "" {
		t.say("%s", out)
	}
	return err
}

func (t *tour) prepare(ctx context.Context) (err error) {
	t.title("A golden Debian image (made in two to four minutes the first time, then kept in the cache)")
	if t.golden, err = harness.NewGolden(ctx); err != nil {
		return err
	}
	t.say("%s", t.golden.QCOW2)
	return nil
}

func (t *tour) importAndCreate(ctx context.Context) error {
	t.title("Import it and create two disks on top")
	if err := t.cowblk(ctx, "import", "--sha256", t.golden.QCOW2, image); err != nil {
		return err
	}
	for _, g := range t.guests {
		if err := t.cowblk(ctx, "create", g.name, "--from", image); err != nil {
			return err
		}
	}
	return nil
}

func (t *tour) serveAndWrite(ctx context.Context) error {
	t.title("Boot a guest from each disk over vhost-user-blk (slow: processors are emulated)")
	return t.session(ctx, func(g *guest) error {
		if err := g.write(ctx); err != nil {
			return err
		}
		t.say("%s wrote and synced 32 MiB and a note", g.name)
		return nil
	})
}

func (t *tour) secondBoot(ctx context.Context) error {
	t.title("New back-ends, new machines, the same disks")
	return t.session(ctx, func(g *guest) error {
		if err := g.checkFiles(ctx); err != nil {
			return err
		}
		t.say("%s found its own files unchanged, and none of the other's", g.name)
		return nil
	})
}

// session serves the disks, boots both guests, runs work for each, and shuts everything down.
func (t *tour) session(ctx context.Context, work func(g *guest) error) error {
	for _, g := range t.guests {
		t.command("serve", g.name, "--socket-path", g.socket, "&")
		b, err := t.store.Serve(ctx, g.name, g.socket)
		if err != nil {
			return err
		}
		g.backend = b
		defer g.close()
		if err := g.boot(ctx, t.golden); err != nil {
			return err
		}
	}
	for _, g := range t.guests {
		b, err := g.waitReady(ctx)
		if err != nil {
			return err
		}
		t.say("%s runs Linux %s, up %s after QEMU's start", g.name, b.Kernel,
			seconds(g.boots[len(g.boots)-1]))
	}
	for _, g := range t.guests {
		if err := work(g); err != nil {
			return err
		}
	}
	for _, g := range t.guests {
		if err := g.shutDown(ctx); err != nil {
			return err
		}
	}
	t.say("both guests shut down, both back-ends stopped")
	return nil
}

func (t *tour) summary(ctx context.Context) error {
	t.title("The result")
	if err := t.cowblk(ctx, "tree"); err != nil {
		return err
	}
	t.say("reading the whole image again ...")
	if err := t.store.CheckImage(ctx, image); err != nil {
		return err
	}
	var base harness.Image
	if err := t.store.JSON(ctx, &base, "info", image); err != nil {
		return err
	}
	fmt.Fprintf(t.out, "\nSummary after %s\n\n", seconds(time.Since(t.start)))
	fmt.Fprintf(t.out, "    guest    first boot    second boot    its head owns    of a disk of\n")
	for _, g := range t.guests {
		var d harness.Disk
		if err := t.store.JSON(ctx, &d, "info", g.name); err != nil {
			return err
		}
		fmt.Fprintf(t.out, "    %-9s%-14s%-15s%-17s%s\n", g.name, seconds(g.boots[0]),
			seconds(g.boots[1]),
			size(d.Head().Owned), size(base.Size))
	}
	fmt.Fprintf(t.out, `
    Each guest found what it had written and synced, and nothing of the other's.
    The image they share did not change: SHA-256 %s
    Everything of this demo has been removed again, except for the golden image in the cache.
`, base.SHA256)
	return nil
}
