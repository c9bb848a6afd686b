package qmp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cowblk/backend/control"
)

// peripheral is the path of devices with an id in QEMU's object tree.
const peripheral = "/machine/peripheral"

// target is the state of a QEMU that hot-plugging needs.
type target struct {
	run          Runner
	major, minor int               // of QEMU's version
	devices      map[string]string // type by id
}

// newTarget queries QEMU for its version and devices.
func newTarget(ctx context.Context, r Runner) (*target, error) {
	t := &target{run: r}
	var v struct {
		QEMU struct {
			Major int `json:"major"`
			Minor int `json:"minor"`
		} `json:"qemu"`
	}
	if err := r.Run(ctx, "query-version", nil, &v); err != nil {
		return nil, err
	}
	t.major, t.minor = v.QEMU.Major, v.QEMU.Minor
	return t, t.queryDevices(ctx)
}

func (t *target) queryDevices(ctx context.Context) (err error) {
	t.devices, err = t.children(ctx, peripheral)
	return err
}

// children returns the types of an object's children by name.
func (t *target) children(ctx context.Context, path string) (map[string]string, error) {
	all, err := t.list(ctx, path)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, p := range all {
		if kind, ok := strings.CutPrefix(p.Type, "child<"); ok {
			found[p.Name] = strings.TrimSuffix(kind, ">")
		}
	}
	return found, nil
}

// property describes a property of a QEMU object (ObjectPropertyInfo).
type property struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

func (t *target) list(ctx context.Context, path string) (all []property, err error) {
	err = t.run.Run(ctx, "qom-list", map[string]string{"path": path}, &all)
	return all, err
}

func (t *target) get(ctx context.Context, path, name string, out any) error {
	return t.run.Run(ctx, "qom-get", map[string]string{"path": path, "property": name}, out)
}

// chardev returns the filename that QEMU reports for a chardev.
func (t *target) chardev(ctx context.Context, id string) (file string, found bool, err error) {
	var all []struct {
		Label string `json:"label"`
		File  string `json:"filename"`
	}
	if err := t.run.Run(ctx, "query-chardev", nil, &all); err != nil {
		return "", false, err
	}
	for _, c := range all {
		if c.Label == id {
			return c.File, true, nil
		}
	}
	return "", false, nil
}

// checkMemory returns an error if the guest's memory cannot be mapped by another process. QEMU
// would accept the device, but the guest's disk would not work.
func (t *target) checkMemory(ctx context.Context) error {
	var all []struct {
		ID    string `json:"id"`
		Share bool   `json:"share"`
	}
	if err := t.run.Run(ctx, "query-memdev", nil, &all); err != nil {
		return err
	}
	if len(all) == 0 {
		return errors.New("the guest's memory is not shared: " + shareAdvice)
	}
	// The machine's memory. With NUMA nodes there are several back-ends, and this is empty.
	var backend string
	if err := t.get(ctx, "/machine", "memory-backend", &backend); err != nil {
		return err
	}
	for _, dev := range all {
		path := "/objects/" + dev.ID
		if backend != "" && path != backend {
			continue
		}
		shared := dev.Share
		if shared && t.major < 10 {
			// Shared, but without a file descriptor to pass.
			var kind string
			if err := t.get(ctx, path, "type", &kind); err != nil {
				return err
			}
			shared = kind != "memory-backend-ram"
		}
		if !shared {
			return fmt.Errorf("the guest's memory (%s) is not shared: %s", dev.ID, shareAdvice)
		}
	}
	return nil
}

const shareAdvice = "vhost-user needs shared memory, which is configured when QEMU starts: " +
	"-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine q35,memory-backend=mem " +
	"(libvirt: <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>)"

// freeBus returns the bus of the first empty PCIe root port, by name; "" if the machine hot-plugs
// into its only PCI bus. The bus of a port has the port's id, which is unique.
func (t *target) freeBus(ctx context.Context) (bus string, err error) {
	objects, err := t.children(ctx, "/machine")
	if err != nil {
		return "", err
	}
	if _, ok := objects["i440fx"]; ok {
		return "", nil
	}
	var ports, used []string
	for id, kind := range t.devices {
		if kind == "pcie-root-port" || kind == "ioh3420" {
			ports = append(ports, id)
		}
	}
	slices.Sort(ports)
	for _, id := range ports {
		by, err := t.portUser(ctx, id)
		if err != nil {
			return "", err
		}
		if by == "" {
			return id, nil
		}
		used = append(used, id+" ("+by+")")
	}
	found := "it has none"
	if len(used) > 0 {
		found = "in use are " + strings.Join(used, ", ")
	}
	return "", fmt.Errorf("QEMU has no free PCIe root port with an id: %s: each hot-plugged disk "+
		"needs its own port, and ports are created when QEMU starts: "+
		"-device pcie-root-port,id=NAME,chassis=NUMBER, once for each "+
		"(libvirt: <controller type='pci' model='pcie-root-port'/>)", found)
}

// portUser returns what uses a root port; empty: nothing.
func (t *target) portUser(ctx context.Context, id string) (by string, err error) {
	path := peripheral + "/" + id
	plug := true
	var e *control.Error
	if err := t.get(ctx, path, "hotplug", &plug); err != nil && !errors.As(err, &e) {
		return "", err // a port without the property supports hot-plugging
	}
	if !plug {
		return "hotplug=off", nil
	}
	all, err := t.list(ctx, path+"/"+id)
	if err != nil {
		return "", err
	}
	for _, p := range all {
		if strings.HasPrefix(p.Name, "child[") {
			return strings.TrimSuffix(strings.TrimPrefix(p.Type, "link<"), ">"), nil
		}
	}
	return "", nil
}
