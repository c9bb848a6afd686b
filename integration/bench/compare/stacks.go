package compare

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cowblk/backend/control"
	"cowblk/integration/bench/compare/report"
)

// deepest is the depth of the deepest stack; shallower ones are made from its tags.
const deepest = 128

// deepDisk is the name of the deepest disk.
const deepDisk = "deep"

// makeStacks makes the disks and serves them. The disk of depth n has n layers: each sealed layer
// owns a few extents, the head owns nothing. The heads of a second set of disks own everything in
// the area.
func (s *site) makeStacks(ctx context.Context) error {
	if err := s.makeDeepDisk(ctx); err != nil {
		return fmt.Errorf("making a disk of %d layers: %w", deepest, err)
	}
	for _, n := range report.Depths() {
		disk := report.Stack(n)
		if err := s.clone(ctx, disk, n); err != nil {
			return err
		}
		if err := s.startServer(ctx, disk, s.serve(disk)); err != nil {
			return err
		}
	}
	for _, n := range headDepths {
		disk := report.Head(n)
		if err := s.clone(ctx, disk, n); err != nil {
			return err
		}
		if err := s.startServer(ctx, disk, s.serve(disk)); err != nil {
			return err
		}
		if err := fill(ctx, s.servers[disk].Socket, extent{0, s.area}); err != nil {
			return fmt.Errorf("filling %s: %w", disk, err)
		}
	}
	return nil
}

var headDepths = [...]int{1, 8, 128}

// clone makes a disk of n layers.
func (s *site) clone(ctx context.Context, disk string, n int) error {
	args := []string{"create", disk, "--base", s.base()}
	if n > 1 {
		args = []string{"create", disk, "--from", fmt.Sprintf("%s@t%d", deepDisk, n-1)}
	}
	_, err := s.store().Run(ctx, args...)
	return err
}

// makeDeepDisk promotes a served disk repeatedly, with some data in each layer.
func (s *site) makeDeepDisk(ctx context.Context) error {
	if _, err := s.store().Run(ctx, "create", deepDisk, "--base", s.base()); err != nil {
		return err
	}
	b, err := s.start(ctx, s.serve(deepDisk))
	if err != nil {
		return err
	}
	err = s.makeLayers(ctx, deepDisk, deepest-1, func(n int) error {
		return fill(ctx, b.Socket, layerExtents(n, s.size)...)
	})
	if err != nil {
		b.Kill()
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return b.Stop(ctx)
}

// control returns a client of the control socket of a disk's server. That socket appears after the
// disk's.
func (s *site) control(disk string) (client *control.Client, err error) {
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		client, err = control.Dial(s.path("store/run/"+disk+".ctl"), 0)
		if !errors.Is(err, control.ErrNoDaemon) || time.Now().After(end) {
			return client, err
		}
	}
}

// makeLayers writes to a served disk and promotes it, layers times. The n-th tag is "tN".
func (s *site) makeLayers(ctx context.Context, disk string, layers int,
	write func(n int) error) error {
	client, err := s.control(disk)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := client.Events(ctx)
	if err != nil {
		return err
	}
	for n := 1; n <= layers; n++ {
		if err := write(n); err != nil {
			return err
		}
		args := map[string]any{"disks": []string{disk}, "tag": fmt.Sprintf("t%d", n)}
		if err := client.Run(ctx, "cow-promote", args, nil); err != nil {
			return err
		}
		for limit := time.After(patience); ; {
			select {
			case e, ok := <-events:
				if !ok {
					return errors.New("the server disconnected")
				}
				if e.Event != "COW_SEALED" {
					continue
				}
			case <-limit:
				return fmt.Errorf("layer %d was not sealed in time", n)
			}
			break
		}
	}
	return nil
}
