package frontend

import (
	"fmt"

	"cowblk/vhost"
)

// Device status bits (virtio 1.2, 2.1).
const (
	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8
	statusNeedsReset  = 0x40
)

// Start starts the device, as when the guest's driver is ready: features, memory if the back-end
// does not have it yet, and all rings.
func (f *Frontend) Start() error {
	if f.opts.Style == SPDK {
		return f.startSPDK()
	}
	if err := f.sendInflight(); err != nil {
		return err
	}
	if err := f.sendU64(vhost.SetFeatures, f.features); err != nil {
		return err
	}
	if err := f.addStatus(statusFeaturesOK); err != nil {
		return err
	}
	if err := f.shareMemory(); err != nil {
		return err
	}
	for i, d := range f.drivers {
		if err := f.sendFD(vhost.SetVringCall, i, d.callFD()); err != nil {
			return err
		}
		if err := f.setRing(i); err != nil {
			return err
		}
	}
	if err := f.enable(1); err != nil {
		return err
	}
	if err := f.addStatus(statusAcknowledge | statusDriver | statusDriverOK); err != nil {
		return err
	}
	// QEMU sends the call descriptors again, unmasked, when all rings run.
	for i, d := range f.drivers {
		if err := f.sendFD(vhost.SetVringCall, i, d.callFD()); err != nil {
			return err
		}
	}
	f.started = true
	return nil
}

// shareMemory announces the regions one by one if the back-end has memory slots, else in one table.
// It does nothing if they are announced already.
func (f *Frontend) shareMemory() error {
	if f.shared {
		return nil
	}
	if f.protocol&vhost.ProtocolConfigureMemSlots == 0 {
		if n := f.opts.Regions; n > vhost.MaxTableRegions {
			return fmt.Errorf("%d regions, expected at most %d without memory slots", n,
				vhost.MaxTableRegions)
		}
		if err := f.ShareMemory(f.mem.regions...); err != nil {
			return err
		}
	} else {
		for _, r := range f.mem.regions {
			if err := f.AddRegion(r); err != nil {
				return err
			}
		}
	}
	f.shared = true
	return nil
}

// setRing announces one ring, in QEMU's order.
func (f *Frontend) setRing(i int) error {
	d := f.drivers[i]
	if err := f.tellRing(false, vhost.SetVringNum, i, uint32(d.ring.Num)); err != nil {
		return err
	}
	if err := f.tellRing(false, vhost.SetVringBase, i, uint32(d.base)); err != nil {
		return err
	}
	desc, avail, used := d.ring.addrs()
	a := vhost.VringAddr{Index: uint32(i), Desc: f.mem.user(desc), Avail: f.mem.user(avail),
		Used: f.mem.user(used)}
	if err := f.sendAck(false, vhost.SetVringAddr, a.Append(nil)); err != nil {
		return err
	}
	return f.sendFD(vhost.SetVringKick, i, d.kickFD())
}

// enable sends SET_VRING_ENABLE for every ring. Without protocol features there is no such message,
// and rings are always enabled.
func (f *Frontend) enable(on uint32) error {
	if f.features&vhost.FeatureProtocolFeatures == 0 {
		return nil
	}
	for i := range f.drivers {
		if err := f.tellRing(true, vhost.SetVringEnable, i, on); err != nil {
			return err
		}
	}
	return nil
}

func (f *Frontend) addStatus(bits uint8) error {
	if f.protocol&vhost.ProtocolStatus == 0 {
		return nil
	}
	v, err := f.askU64(vhost.GetStatus)
	if err != nil {
		return err
	}
	if v&^statusNeedsReset != uint64(f.status) { // set by the device
		return fmt.Errorf("device status %#x, expected %#x", v, f.status)
	}
	f.status |= bits
	return f.sendU64(vhost.SetStatus, uint64(f.status))
}

func (f *Frontend) startSPDK() error {
	for i, d := range f.drivers {
		if err := f.sendFD(vhost.SetVringCall, i, d.callFD()); err != nil {
			return err
		}
	}
	if err := f.enable(1); err != nil {
		return err
	}
	if err := f.ShareMemory(f.mem.regions...); err != nil {
		return err
	}
	f.shared = true
	for i := range f.drivers {
		if err := f.setRing(i); err != nil {
			return err
		}
	}
	f.started = true
	return f.Barrier()
}

// Stop stops all rings and records their indexes, like the monitor's `stop`. It returns when the
// back-end has completed every request; completions that the drivers have not polled are still in
// their rings.
func (f *Frontend) Stop() error {
	f.started = false
	if f.opts.Style == SPDK {
		if err := f.stopRings(); err != nil {
			return err
		}
		return f.ShareMemory(f.mem.regions...)
	}
	// QEMU 7.2 resets the status first, QEMU 10 last, for `stop` as for a reset: it does not
	// describe the device's state.
	last := f.protocol&vhost.ProtocolResetDevice != 0
	if !last {
		if err := f.clearStatus(); err != nil {
			return err
		}
	}
	if err := f.enable(0); err != nil {
		return err
	}
	if err := f.stopRings(); err != nil {
		return err
	}
	if last {
		return f.clearStatus()
	}
	return nil
}

func (f *Frontend) clearStatus() error {
	f.status = 0
	if f.protocol&vhost.ProtocolStatus == 0 {
		return nil
	}
	return f.sendU64(vhost.SetStatus, 0)
}

func (f *Frontend) stopRings() error {
	for i, d := range f.drivers {
		base, err := f.vringBase(i)
		if err != nil {
			return err
		}
		d.base = base
	}
	return nil
}

// vringBase stops ring i and returns its next available index.
func (f *Frontend) vringBase(i int) (uint16, error) {
	b, err := f.query(vhost.GetVringBase, vhost.VringState{Index: uint32(i)}.Append(nil))
	if err != nil {
		return 0, err
	}
	v, err := vhost.DecodeVringState(b)
	if err != nil {
		return 0, fmt.Errorf("%v: answer: %w", vhost.GetVringBase, err)
	}
	if v.Index != uint32(i) || v.Num > 0xffff {
		return 0, fmt.Errorf("%v: answer is ring %d at %d, expected ring %d", vhost.GetVringBase,
			v.Index, v.Num, i)
	}
	return uint16(v.Num), nil
}

// Cont starts the rings where Stop stopped them, like the monitor's `cont`. The memory table is not
// sent again.
func (f *Frontend) Cont() error {
	if err := f.Start(); err != nil {
		return err
	}
	// The guest does not repeat a kick that it sent while no back-end listened.
	for _, d := range f.drivers {
		if err := d.kickAlways(); err != nil {
			return err
		}
	}
	return nil
}

// Reset does what system_reset and the next driver's start do: the rings are stopped, the device is
// reset if the back-end supports it, and empty rings start at index 0. Requests that the drivers
// have not polled are forgotten.
func (f *Frontend) Reset() error {
	if err := f.Stop(); err != nil {
		return err
	}
	if f.protocol&vhost.ProtocolResetDevice != 0 {
		// The regions and the error descriptors are not sent again.
		if err := f.sendAck(false, vhost.ResetDevice, nil); err != nil {
			return err
		}
	}
	if err := f.dropInflight(); err != nil {
		return err
	}
	for _, d := range f.drivers {
		d.reset()
	}
	return f.Start()
}
