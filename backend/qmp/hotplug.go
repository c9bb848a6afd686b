package qmp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"cowblk/backend/control"
)

// Plug describes a vhost-user-blk disk to be hot-plugged.
type Plug struct {
	Disk   string // for messages and ids
	Socket string // where it is served
	ID     string // of the device; empty: DeviceID
	Bus    string // empty: that of the first free root port
	Queues int    // 0: QEMU's default, one for each vCPU
}

// Plugged describes what was added to QEMU.
type Plugged struct {
	ID      string `json:"id"`      // of the device
	Chardev string `json:"chardev"` // of its connection
	Bus     string `json:"bus,omitempty"`
}

// Limits of waits for QEMU, within the caller's.
const (
	connectTimeout = 5 * time.Second // for QEMU to reach the socket
	undoTimeout    = 10 * time.Second
	pollInterval   = 50 * time.Millisecond
	queryInterval  = time.Second // polling, because events are lost while the monitor reconnects
)

// DeviceID returns the default id of a disk's device, as in the output of qemu-args.
func DeviceID(disk string) string { return "disk-" + disk }

// chardevID returns the id of the disk's chardev.
func chardevID(disk string) string { return "sock-" + disk }

// Attach plugs the disk into a running QEMU. After an error it removes what it added, if QEMU
// answers.
func Attach(ctx context.Context, r Runner, p Plug) (*Plugged, error) {
	if p.ID == "" {
		p.ID = DeviceID(p.Disk)
	}
	plugged := &Plugged{ID: p.ID, Chardev: chardevID(p.Disk), Bus: p.Bus}
	t, err := newTarget(ctx, r)
	if err != nil {
		return nil, err
	}
	if t.devices[p.ID] != "" {
		return nil, fmt.Errorf("QEMU has a device %q already: detach it, or give this one "+
			"another id", p.ID)
	}
	if err := t.checkMemory(ctx); err != nil {
		return nil, err
	}
	if p.Bus == "" {
		if plugged.Bus, err = t.freeBus(ctx); err != nil {
			return nil, err
		}
	}
	// Left over if the guest released a device after Detach had timed out. QEMU refuses to remove a
	// chardev in use.
	if _, found, err := t.chardev(ctx, plugged.Chardev); err != nil {
		return nil, err
	} else if found {
		id := map[string]string{"id": plugged.Chardev}
		if err := r.Run(ctx, "chardev-remove", id, nil); err != nil {
			return nil, fmt.Errorf("QEMU has a connection %q to disk %q already: %w",
				plugged.Chardev, p.Disk, err)
		}
	}
	if err := r.Run(ctx, "chardev-add", t.chardevAdd(plugged.Chardev, p.Socket), nil); err != nil {
		return nil, err
	}
	// If QEMU cannot reach the socket, device_add blocks QEMU and the guest.
	if err = t.waitConnected(ctx, plugged.Chardev, p); err == nil {
		device := map[string]any{
			"driver": "vhost-user-blk-pci", "id": p.ID, "chardev": plugged.Chardev,
		}
		if plugged.Bus != "" {
			device["bus"] = plugged.Bus
		}
		if p.Queues > 0 {
			device["num-queues"] = p.Queues
		}
		err = r.Run(ctx, "device_add", device, nil)
	}
	if err == nil {
		return plugged, nil
	}
	uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if uerr := removeChardev(uctx, r, plugged.Chardev); uerr != nil {
		err = errors.Join(err, fmt.Errorf("and the incomplete change could not be undone: %w: "+
			"run \"cowblk detach\" when QEMU answers again", uerr))
	}
	return nil, err
}

// chardevAdd returns the arguments of chardev-add. From QEMU 9.2 on, reconnect in seconds is
// deprecated.
func (t *target) chardevAdd(id, socket string) map[string]any {
	data := map[string]any{
		"addr":   map[string]any{"type": "unix", "data": map[string]string{"path": socket}},
		"server": false,
	}
	if t.major > 9 || t.major == 9 && t.minor >= 2 {
		data["reconnect-ms"] = 1000
	} else {
		data["reconnect"] = 1
	}
	return map[string]any{"id": id, "backend": map[string]any{"type": "socket", "data": data}}
}

// waitConnected returns when QEMU has connected to the socket.
func (t *target) waitConnected(ctx context.Context, id string, p Plug) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	for {
		file, found, err := t.chardev(ctx, id)
		if err == nil && found && !strings.HasPrefix(file, "disconnected:") {
			return nil
		}
		// The connection's deadline is ctx's, and may expire first.
		if err != nil && ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if err := sleep(ctx, pollInterval); err != nil {
			return fmt.Errorf("QEMU does not connect to %s, where disk %q is served: QEMU's user "+
				"must be allowed to open it (serve --socket-group) and see that path: %w",
				p.Socket, p.Disk, err)
		}
	}
}

// Detach unplugs the device id and removes its chardev. The guest must release the device before
// ctx ends; one that runs no system yet, or that refuses, never does. If the device is gone and its
// chardev is left, Detach removes the chardev.
func Detach(ctx context.Context, m *Monitor, disk, id string) error {
	if id == "" {
		id = DeviceID(disk)
	}
	sub := m.Subscribe("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")
	defer sub.Close()
	t := &target{run: m}
	if err := t.queryDevices(ctx); err != nil {
		return err
	}
	kind := t.devices[id]
	chardev := chardevID(disk)
	switch {
	case kind == "":
		if _, found, err := t.chardev(ctx, chardev); err != nil || !found {
			return errors.Join(err, &control.Error{Class: control.DeviceNotFound,
				Desc: fmt.Sprintf("QEMU has no device %q", id)})
		}
		return removeChardev(ctx, m, chardev)
	case !strings.HasPrefix(kind, "vhost-user-blk"):
		return fmt.Errorf("QEMU's device %q is a %s, not a disk served over vhost-user", id, kind)
	}
	if err := t.get(ctx, peripheral+"/"+id, "chardev", &chardev); err != nil {
		return err
	}
	err := m.Run(ctx, "device_del", map[string]string{"id": id}, nil)
	if err != nil && !strings.Contains(err.Error(), "process of unplug") {
		return err
	}
	if err := t.waitDeleted(ctx, sub, id); err != nil {
		return err
	}
	return removeChardev(ctx, m, chardev)
}

// waitDeleted returns when the device is gone, or an error if the guest refuses.
func (t *target) waitDeleted(ctx context.Context, sub *Subscription, id string) error {
	ticker := time.NewTicker(queryInterval)
	defer ticker.Stop()
	for {
		select {
		case e, ok := <-sub.C:
			switch {
			case !ok:
				return ErrClosed
			case e.Data["device"] != id:
			case e.Event == "DEVICE_DELETED":
				return nil
			default:
				return fmt.Errorf("the guest refuses to release device %q: is it in use there? "+
					"unmount it and try again", id)
			}
		case <-ticker.C:
			// An error comes from the connection, which is restored.
			if err := t.queryDevices(ctx); err == nil && t.devices[id] == "" {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("the guest has not released device %q: the request stands, and it "+
				"still can; it must run a system that supports hot-plugging: try again when it "+
				"does, or after a reset: %w", id, ctx.Err())
		}
	}
}

// removeChardev removes a chardev. QEMU releases it shortly after DEVICE_DELETED, so "busy" is
// retried.
func removeChardev(ctx context.Context, r Runner, id string) error {
	for {
		err := r.Run(ctx, "chardev-remove", map[string]string{"id": id}, nil)
		switch {
		case err == nil || strings.Contains(err.Error(), "not found"):
			return nil
		case !strings.Contains(err.Error(), "busy"):
			return err
		}
		if sleep(ctx, pollInterval) != nil {
			return err
		}
	}
}
