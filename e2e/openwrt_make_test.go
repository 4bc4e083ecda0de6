package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// openWrtRules stands in for what the Makefile of an OpenWrt package includes, by its path
// below TOPDIR: the variables and the order of steps of OpenWrt 23.05, on this machine. The
// recipes of a package are expanded once before make reads them as its own, as there.
var openWrtRules = map[string]string{
	"rules.mk": `
INCLUDE_DIR := $(TOPDIR)/include
PKG_BUILD_DIR = $(TOPDIR)/build/$(PKG_NAME)
CP := cp -fpR
INSTALL_DIR := install -d -m0755
INSTALL_BIN := install -m0755
INSTALL_CONF := install -m0600
TARGET_CC := cc
TARGET_CFLAGS := -Os
TARGET_CPPFLAGS := -DOPENWRT
TARGET_LDFLAGS := -Wl,-z,now
SOURCE_DATE_EPOCH := 1700000000
`,
	"include/package.mk": `
define BuildPackage
$(eval $(Package/$(1)))
$(foreach field,SECTION CATEGORY TITLE URL DEPENDS,$(if $($(field)),,$(error Package/$(1) has no $(field))))
$(foreach part,description conffiles install,$(if $(Package/$(1)/$(part)),,$(error there is no Package/$(1)/$(part))))
$(foreach field,PKG_NAME PKG_VERSION PKG_RELEASE,$(if $($(field)),,$(error there is no $(field))))
all:
	mkdir -p $(PKG_BUILD_DIR)
	$(Build/Prepare)
	$(Build/Compile)
	$(call Package/$(1)/install,$(ROOT))
	@echo 'DEPENDS $(DEPENDS)' >$(ROOT).about
	@echo 'CONFLICTS $(CONFLICTS)' >>$(ROOT).about
	@printf 'conffile %s\n' $(strip $(Package/$(1)/conffiles)) >>$(ROOT).about
endef
`,
	"feeds/packages/lang/golang/golang-package.mk": `
GO_ARCH_DEPENDS := @(aarch64||arm||mips)
GO_WORK := $(TOPDIR)/work
GO_SRC = $(GO_WORK)/src/$(GO_PKG)
define GoBinPackage
define Build/Compile
	mkdir -p $(GO_SRC)
	cp -R $(PKG_BUILD_DIR)/. $(GO_SRC)
	$(if $(GO_PKG_INSTALL_ALL),,find $(GO_SRC) -type f ! -name '*.go' ! -name 'go.*' -delete)
	cd $(GO_SRC) && CGO_ENABLED=0 go build -trimpath -ldflags '$(foreach x,$(GO_PKG_LDFLAGS_X),-X $(x))' -o $(GO_WORK)/bin/ $(GO_PKG_BUILD_PKG)
endef
endef
define GoPackage/Package/Install/Bin
	$(INSTALL_DIR) $(1)/usr/bin
	$(INSTALL_BIN) $(GO_WORK)/bin/* $(1)/usr/bin/
endef
`,
}

// TestOpenWrtPackages has the Makefiles of the OpenWrt packages build and install both
// agents, and the init script find what they have installed.
func TestOpenWrtPackages(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct {
		version string // how it is asked for
		says    string
		about   []string
	}{
		"iottunnel-agent":      {"version", "iottunnel-agent ", []string{"DEPENDS @(aarch64||arm||mips) +ca-bundle", "CONFLICTS iottunnel-agent-lite"}},
		"iottunnel-agent-lite": {"--version", "iottunnel-agent-lite, protocol v1", []string{"DEPENDS +libmbedtls +ca-bundle", "CONFLICTS iottunnel-agent"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			top, root := t.TempDir(), filepath.Join(t.TempDir(), "root")
			for file, text := range openWrtRules {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(top, file)), 0o755); err != nil {
					t.Fatal(err)
				}
				writeFile(t, filepath.Join(top, file), text)
			}
			status, out, errs := harness.RunToEnd(t, 10*time.Minute, harness.Command{
				Name: "make", Args: []string{"make", "TOPDIR=" + top, "ROOT=" + root}, Dir: "../packaging/openwrt/" + name,
			})
			if status != 0 {
				t.Fatalf("make: %d\n%s%s", status, out, errs)
			}
			modes := make(map[string]os.FileMode)
			err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
				if err == nil && !info.IsDir() {
					modes[strings.TrimPrefix(path, root)] = info.Mode()
				}
				return err
			})
			if wanted := map[string]os.FileMode{"/usr/bin/" + name: 0o755, "/etc/init.d/iottunnel": 0o755, "/etc/config/iottunnel": 0o600}; err != nil || !maps.Equal(modes, wanted) {
				t.Errorf("installed: %v, %v; want %v", modes, err, wanted)
			}
			status, out, errs = harness.RunToEnd(t, time.Minute, harness.Command{Name: name, Args: []string{root + "/usr/bin/" + name, want.version}})
			if status != 0 || !strings.HasPrefix(out, want.says) {
				t.Errorf("%s: %d, %q, %s", want.version, status, out, errs)
			}
			config, err := os.ReadFile(root + "/etc/config/iottunnel")
			if err != nil {
				t.Fatal(err)
			}
			enabled := strings.Replace(string(config), "enabled '0'", "enabled '1'", 1)
			if words, log := openWrtRuns(t, root+"/etc/init.d/iottunnel", enabled); len(words) == 0 || words[0] != "/usr/bin/"+name || log != "" {
				t.Errorf("the init script runs %q, %s", words, log)
			}
			about, err := os.ReadFile(root + ".about")
			if lines := strings.Split(strings.TrimSpace(string(about)), "\n"); err != nil ||
				!slices.Equal(lines, append(want.about, "conffile /etc/config/iottunnel", "conffile /etc/iottunnel/token")) {
				t.Errorf("the package says %q, %v", lines, err)
			}
		})
	}
}
