package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"cowblk/integration/harness"
)

// guest is one of the tour's two machines, with its disk.
type guest struct {
	name   string // of the machine and of the disk
	socket string

	backend *harness.Backend
	machine *harness.Machine
	boots   []time.Duration // durations from QEMU's start until the guest's services run
	wrote   string          // checksums of the files it wrote
}

// boot starts the guest's machine; waitReady waits for it.
func (g *guest) boot(ctx context.Context, golden harness.Golden) (err error) {
	g.machine, err = harness.StartMachine(ctx, harness.MachineOptions{
		Name: g.name, Dir: filepath.Dir(g.socket), Golden: golden, Boot: harness.BootDirect,
		Disks: []string{g.socket},
	})
	return err
}

func (g *guest) waitReady(ctx context.Context) (harness.Boot, error) {
	b, took, err := g.machine.Ready(ctx)
	g.boots = append(g.boots, took)
	return b, err
}

// shutDown shuts the guest down, and then its back-end.
func (g *guest) shutDown(ctx context.Context) error {
	if err := g.machine.PowerOff(ctx); err != nil {
		return err
	}
	return g.backend.Stop(ctx)
}

// close kills what still runs after an aborted tour.
func (g *guest) close() {
	if g.machine != nil {
		g.machine.Close()
	}
	g.backend.Kill()
}

// write makes and syncs files that only this guest has.
func (g *guest) write(ctx context.Context) (err error) {
	g.wrote, err = g.machine.Run(ctx, fmt.Sprintf(`set -e
		mkdir /root/%[1]s
		echo "this belongs to %[1]s" >/root/%[1]s/note
		dd if=/dev/urandom of=/root/%[1]s/data bs=1M count=32 status=none
		sync
		sha256sum /root/%[1]s/*`, g.name))
	return err
}

// checkFiles checks that the guest sees its own files unchanged, and no others.
func (g *guest) checkFiles(ctx context.Context) error {
	found, err := g.machine.Run(ctx, fmt.Sprintf("sha256sum /root/%s/*; ls /root", g.name))
	if err != nil {
		return err
	}
	if want := g.wrote + "\n" + g.name; found != want {
		return fmt.Errorf("guest %s: expected\n%s\nfound\n%s", g.name, want, found)
	}
	return nil
}
