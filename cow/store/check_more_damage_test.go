package store

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"cowblk/internal/test"
)

// moreDamages has the damages of documents, images and bases, and the rest.
func moreDamages() []damage {
	vm1, place := []string{"vm1"}, []string{"place"}
	const orphaned = "left store layer ORPHAN: disks that name it"
	return []damage{
		{"manifest cut", func(h *hurt) { h.truncate(h.path(disksDir, "vm1", diskFile), 100) },
			[]string{"left vm1 manifest: content", orphaned}, vm1, vm1},
		{"manifest is not JSON", func(h *hurt) { h.put(h.path(disksDir, "vm1", diskFile), 30, 0) },
			[]string{"left vm1 manifest: content", orphaned}, vm1, vm1},
		{"manifest gone", func(h *hurt) { h.remove(h.path(disksDir, "vm1", diskFile)) },
			[]string{"left vm1 manifest: manifest of the disk", orphaned}, vm1, vm1},
		{"manifest of another disk",
			func(h *hurt) { h.manifest("vm1", `"name": "vm1"`, `"name": "vm3"`) },
			[]string{"left vm1 manifest: content", orphaned}, vm1, vm1},
		{"manifest of a newer program",
			func(h *hurt) { h.manifest("vm1", `"version": 1`, `"version": 2`) },
			[]string{"left vm1 manifest: version", orphaned}, vm1, vm1},
		{"manifest with another size",
			func(h *hurt) { h.manifest("vm1", `"size": 66048,`, `"size": 67072,`) },
			[]string{"left vm1 layer vm1: size of the disk in bytes"}, vm1, vm1},
		{"UUID twice in a manifest",
			func(h *hurt) {
				h.manifest("vm1", h.role("vm1").UUID.String(), h.role("SEALED").UUID.String())
			},
			[]string{"left vm1 manifest: content", orphaned}, vm1, vm1},
		{"tag twice", func(h *hurt) {
			h.manifest("vm1", `"map": "layers/`+h.role("vm1").UUID.String(),
				`"tag": "t", "map": "layers/`+h.role("vm1").UUID.String())
		},
			[]string{"left vm1 manifest: content", orphaned}, vm1, vm1},
		{"bad tag", func(h *hurt) { h.manifest("vm1", `"tag": "t"`, `"tag": "../t"`) },
			[]string{"left vm1 manifest: content", orphaned}, vm1, vm1},
		{"base without an identity", func(h *hurt) {
			path := h.path(disksDir, "place", diskFile)
			data, _ := os.ReadFile(path)
			head, rest, _ := strings.Cut(string(data), `,
    "identity"`)
			_, tail, _ := strings.Cut(rest, "}")
			write(h.t, path, []byte(head+tail))
		},
			[]string{"left place manifest: content", orphaned}, place, place},
		{"layers in the wrong order", func(h *hurt) {
			a, b := h.role("SEALED").UUID.String(), h.role("vm1").UUID.String()
			path := h.path(disksDir, "vm1", diskFile)
			data, _ := os.ReadFile(path)
			write(h.t, path, []byte(strings.NewReplacer(a, b, b, a, `"tag": "t",`,
				"").Replace(string(data))))
		}, []string{
			"left vm1 layer SEALED: parent", "left vm1 layer vm1: parent",
			"left vm1 layer vm1: state of the top layer",
			"left vm1 layer vm1: disks that name the head",
		}, vm1, vm1},
		{"disk copied by hand", func(h *hurt) {
			data, _ := os.ReadFile(h.path(disksDir, "bare", diskFile))
			test.Must(h.t, os.Mkdir(h.path(disksDir, "copy"), 0o755))
			write(h.t, h.path(disksDir, "copy", diskFile),
				[]byte(strings.Replace(string(data), `"bare"`, `"copy"`, 1)))
		}, []string{"left bare layer copy: disks that name the head",
			"left copy layer copy: disks that name the head"}, nil, nil},

		{"temporary files", func(h *hurt) {
			write(h.t, h.path(disksDir, "vm1", diskFile+".new"), []byte("{"))
			write(h.t, h.path(disksDir, "vm2", quiesceFile+".new"), nil)
			write(h.t, h.path(imagesDir, "img", imageFile+".new"), []byte("{}"))
		}, []string{
			"repairable img temporary file: a file that an interrupted change has not put in place",
			"repairable vm1 temporary file: a file that an interrupted change has not put in place",
			"repairable vm2 temporary file: a file that an interrupted change has not put in place",
		}, nil, nil},
		{"temporary file beside a damaged manifest", func(h *hurt) {
			path := h.path(disksDir, "vm1", diskFile)
			data, _ := os.ReadFile(path)
			write(h.t, path+".new", data)
			h.truncate(path, 100)
		}, []string{"left vm1 manifest: content",
			"left vm1 temporary file: a file that an interrupted change has not put in place",
			orphaned}, vm1, vm1},
		{"layer that nobody names", func(h *hurt) { h.orphan(7) }, []string{orphaned}, nil, nil},
		{"empty layer that nobody names", func(h *hurt) { h.orphan(0) }, []string{orphaned}, nil,
			nil},
		{"empty layer that a damaged manifest may name",
			func(h *hurt) { h.orphan(0); h.truncate(h.path(disksDir, "vm1", diskFile), 100) },
			[]string{"left vm1 manifest: content", orphaned, orphaned}, vm1, vm1},
		{"interrupted command", func(h *hurt) { h.work("0"+stagedAfter, "half done") },
			[]string{"repairable store transaction directory: work of a process that is gone"}, nil,
			nil},
		{"interrupted command with layers", func(h *hurt) {
			h.orphan(3)
			entries, _ := os.ReadDir(h.path(layersDir))
			j := journal{Disks: []string{"vm1"}}
			for _, e := range entries {
				j.Layers = append(j.Layers, uuid.MustParse(e.Name()))
			}
			h.work(journalFile, j)
		}, []string{"repairable store transaction directory: work of a process that is gone"}, nil,
			nil},
		{"interrupted promotion of two disks", func(h *hurt) { h.decided(false) },
			[]string{"repairable store transaction directory: work of a process that is gone"}, nil,
			nil},
		{"promotion of two disks interrupted while it was undone",
			func(h *hurt) { h.decided(true) },
			[]string{"repairable store transaction directory: work of a process that is gone"}, nil,
			nil},
		{"damaged record of a promotion",
			func(h *hurt) { h.work(commitFile, `{"from":["`+uuid.NewString()+`"],"to":[null]}`) },
			[]string{
				"left bare change of several disks: record of a change of several disks",
				"left place change of several disks: record of a change of several disks",
				"left store transaction directory: work of a process that is gone",
				"left vm1 change of several disks: record of a change of several disks",
				"left vm2 change of several disks: record of a change of several disks",
			}, []string{"vm1", "vm2", "bare", "place"}, []string{"vm1", "vm2", "bare", "place"}},
		{"damaged journal", func(h *hurt) { h.work(journalFile, "{") },
			[]string{"left store transaction directory: work of a process that is gone"}, nil, nil},

		{"image changed", func(h *hurt) {
			path := h.ImageData("img")
			h.remove(path)
			write(h.t, path, noise(77, mouldSize))
		}, []string{
			"left img image data: sampled content of the image",
			"left vm1 image data: sampled content of the image",
			"left vm2 image data: sampled content of the image",
		}, vms, vms},
		{"image changed where no sample is", func(h *hurt) {
			path := h.ImageData("img")
			st, _ := os.Stat(path)
			os.Chmod(path, 0o600)
			h.put(path, 4096*10+5, 0x5a) // every page is sampled because the file is small
			os.Chtimes(path, time.Time{}, st.ModTime())
		}, []string{
			"left img image data: sampled content of the image",
			"left vm1 image data: sampled content of the image",
			"left vm2 image data: sampled content of the image",
		}, vms, vms},
		{"image touched", func(h *hurt) {
			os.Chtimes(h.ImageData("img"), time.Time{}, time.Unix(1e9, 5))
		},
			[]string{
				"repairable img image data: modification time of the base",
			}, nil, nil},
		{"image cut", func(h *hurt) { h.truncate(h.ImageData("img"), 4096) }, []string{
			"left img image data: size of the image", "left vm1 image data: size of the image",
			"left vm2 image data: size of the image",
		}, vms, vms},
		{"image gone", func(h *hurt) { h.remove(h.path(imagesDir, "img")) },
			[]string{"left vm1 image img: base of the disk",
				"left vm2 image img: base of the disk"}, vms, vms},
		{"image without a description",
			func(h *hurt) { h.remove(h.path(imagesDir, "img", imageFile)) }, []string{
				"left img image.json: description of the image",
				"left vm1 image.json: description of the image",
				"left vm2 image.json: description of the image",
			}, vms, vms},
		{"image's data gone", func(h *hurt) { h.remove(h.ImageData("img")) },
			[]string{"left img image data: file", "left vm1 image data: file",
				"left vm2 image data: file"}, vms, vms},
		{"another image of that name", func(h *hurt) {
			h.remove(h.path(imagesDir, "img"))
			importRaw(h.t, h.Store, "img", noise(3, mouldSize))
		}, []string{"left vm1 image img: fingerprint of the base of the disk",
			"left vm2 image img: fingerprint of the base of the disk"}, vms, vms},
		{"base touched", func(h *hurt) { os.Chtimes(h.base, time.Time{}, time.Unix(1e9, 5)) },
			[]string{"left place base: modification time of the base"}, place, place},
		{"base changed", func(h *hurt) { write(h.t, h.base, noise(9, 65536)) },
			[]string{"left place base: sampled content of the base"}, place, place},
		{"base gone", func(h *hurt) { h.remove(h.base) },
			[]string{"left place base: base of disk place"}, place, place},
		{"base is a directory's",
			func(h *hurt) { h.remove(h.base); os.MkdirAll(filepath.Join(h.base, "x"), 0o755) },
			[]string{"left place base: base of disk place"}, place, place},
	}
}
