package compare

import (
	"context"
	"fmt"
	"os/exec"

	"cowblk/integration/bench/compare/report"
	"cowblk/integration/harness"
)

// A maker makes a disk that has not been used. It returns the command of the disk's server, and a
// function that removes the disk.
type maker func(ctx context.Context, name string) (cmd func(socket string) *exec.Cmd,
	remove func() error, err error)

// onFresh takes a sample of a disk that is made for it, by a server that is started for it. The
// server is killed without a flush.
func (s *site) onFresh(ctx context.Context, make maker,
	measure func(*harness.Backend) (report.Sample, error)) (sample report.Sample, err error) {
	s.fresh++
	cmd, remove, err := make(ctx, fmt.Sprintf("fresh%d", s.fresh))
	if err != nil {
		return sample, err
	}
	b, err := s.start(ctx, cmd)
	if err != nil {
		return sample, err
	}
	sample, err = measure(b)
	b.Kill()
	if err == nil {
		err = remove()
	}
	return sample, err
}

// freshDisk makes a disk of cowblk on the base.
func (s *site) freshDisk(ctx context.Context, name string) (func(string) *exec.Cmd, func() error,
	error) {
	remove := func() error { _, err := s.store().Run(ctx, "rm", "--yes", name); return err }
	return s.serve(name), remove, s.clone(ctx, name, 1)
}

// freshSparse makes an empty sparse file, served by cowblk's pass-through.
func (s *site) freshSparse(_ context.Context, name string) (func(string) *exec.Cmd, func() error,
	error) {
	path := s.path(name)
	return s.passThrough(path), removal(path), makeSparse(path, s.size)
}

// freshOverlay makes a qcow2 overlay on the base.
func (s *site) freshOverlay(ctx context.Context, name string) (func(string) *exec.Cmd, func() error,
	error) {
	path := s.path(name + ".qcow2")
	return s.export(chainNode(s.base(), []string{path}), true), removal(path),
		s.createImage(ctx, path, s.base())
}

// freshRaw serves the base itself by qemu-storage-daemon, read-only.
func (s *site) freshRaw(context.Context, string) (func(string) *exec.Cmd, func() error, error) {
	return s.export(rawNode(s.base()), false), func() error { return nil }, nil
}
