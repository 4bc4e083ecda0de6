package tunnelcore

import (
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// FuzzLookupTCP asks for what TLS clients may say they want (SNI): a port of a device
// is reached by its own name alone, however that is written.
func FuzzLookupTCP(f *testing.F) {
	f.Add("cam-17--22.devices.test")
	f.Add("CAM-17--22.devices.test.")
	f.Add("cam-17--8080.devices.test")
	f.Add("cam-17.devices.test")
	f.Add("cam-17--22--22.devices.test")
	f.Add("--22.devices.test")
	f.Add("cam-17--022.devices.test:443")
	reg, err := registry.OpenMemory(registry.MemoryOptions{})
	if err != nil {
		f.Fatal(err)
	}
	s := Defaults()
	s.Domain = "devices.test"
	h, err := New(Config{Node: "edge-1", Registry: reg, Settings: s})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { h.Shutdown(f.Context()) })
	h.labels.Store("cam-17", &tunnel{hub: h, settings: &s, holder: registry.Holder{Device: "cam-17"}, hello: hello("cam-17")})
	f.Fuzz(func(t *testing.T, name string) {
		target, err := h.LookupTCP(t.Context(), name)
		if err != nil || !target.Online {
			return
		}
		if names.Normal(name) != "cam-17--22.devices.test" || target.Device != "cam-17" || target.Port != 22 {
			t.Errorf("%q leads to %+v", name, target)
		}
	})
}
