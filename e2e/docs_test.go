package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// block is a fenced block of a page.
type block struct {
	page string
	line int
	lang string
	run  bool // the comment `<!-- run -->` stands in front of it
	text string
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

// blocks reads the pages of the repository.
func blocks(t *testing.T) (all []block) {
	t.Helper()
	pages := []string{"README.md", "lua/README.md"}
	more, err := filepath.Glob("../docs/*.md")
	if err != nil || len(more) == 0 {
		t.Fatal(more, err)
	}
	for _, page := range more {
		pages = append(pages, strings.TrimPrefix(page, "../"))
	}
	for _, page := range pages {
		text, err := os.ReadFile(filepath.Join("..", page))
		if err != nil {
			t.Fatal(err)
		}
		var open *block
		run := false
		for i, line := range strings.Split(string(text), "\n") {
			lang, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
			switch {
			case isFence && open == nil:
				open = &block{page: page, line: i + 1, lang: lang, run: run}
			case isFence:
				all = append(all, *open)
				open = nil
			case open != nil:
				open.text += line + "\n"
			}
			run = strings.TrimSpace(line) == "<!-- run -->"
		}
		if open != nil {
			t.Errorf("%s: the block is never closed", open)
		}
	}
	return all
}

// languages of blocks that are not commands, and who looks at them.
var languages = map[string]string{
	"caddyfile": "scripts/check-examples has Caddy validate it",
	"go":        "read, not run: what it calls is the SDK's example, which is built",
	"nginx":     "the tests of the Lua router run a whole configuration",
	"yaml":      "the agent's tests read it",
	"python":    "TestWebhookSnippet runs it",
	"json":      "parsed here",
	"c":         "the C client's tests build such programs",
	"text":      "shows what a program prints, or a format",
}

// programs that command blocks may begin with. What they do outside of a sandbox
// (install, start services) is not run; their use of our own programs is looked at.
var programs = []string{
	"caddy", "iottunnel-agent", "iottunnel-conformance", "bin/caddy", "bin/iottunnel-agent", "bin/iottunnel-conformance", "make", "go", "cd",
	"curl", "openssl", "ssh", "scp", "git", "systemctl", "journalctl", "docker", "apt", "apt-get", "sudo", "xcaddy", "redis-cli", "install", "sysctl",
	"sh", "promtool", "python3", "echo", "printf", "cat", "cp", "tar", "opkg", "dpkg", "nginx", "export", "scripts/dist", "dist", "jq", "rsync", "mkdir", "chmod",
}

// commandsOf returns the commands of a shell text, as words, with continued lines
// joined and comments gone.
func commandsOf(text string) (commands [][]string) {
	text = strings.ReplaceAll(text, "\\\n", " ")
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(" "+line, " #")
		for _, part := range regexp.MustCompile(`\|\||&&|[|;]`).Split(line, -1) {
			words := strings.Fields(part)
			for len(words) > 0 && (words[0] == "sudo" || regexp.MustCompile(`^[A-Z_]+=`).MatchString(words[0])) {
				words = words[1:]
			}
			if len(words) > 0 {
				commands = append(commands, words)
			}
		}
	}
	return commands
}

// isCommands reports whether a block without a language is commands: all of them
// begin with a program. mixed: some do.
func isCommands(text string) (yes, mixed bool) {
	known, all := 0, commandsOf(text)
	for _, words := range all {
		if slices.Contains(programs, words[0]) {
			known++
		}
	}
	return known > 0 && known == len(all), known > 0 && slices.Contains(programs[:6], all[0][0])
}

// TestDocumentedCommands looks at every block of the README and docs: what is shell
// must parse, and use subcommands, flags and make targets that there are.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	checked := 0
	for _, b := range blocks(t) {
		switch yes, mixed := isCommands(b.text); {
		case b.lang == "sh", b.lang == "bash", b.lang == "" && yes:
			checked++
			checkShell(t, b)
		case b.lang == "json":
			if !json.Valid([]byte(b.text)) {
				t.Errorf("%s: is not JSON", b)
			}
		case languages[b.lang] != "", b.lang == "" && !mixed:
		case b.lang == "":
			t.Errorf("%s: begins with a command and has lines that begin with none: give the block a language", b)
		default:
			t.Errorf("%s: nobody looks at blocks of %q: say in languages who does", b, b.lang)
		}
	}
	if checked < 10 {
		t.Errorf("only %d blocks of commands are found", checked)
	}
}

func checkShell(t *testing.T, b block) {
	t.Helper()
	cmd := exec.Command("sh", "-n")
	cmd.Stdin = strings.NewReader(placeholders.Replace(b.text))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s", b, err, out)
	}
	for _, words := range commandsOf(b.text) {
		switch program := filepath.Base(words[0]); program {
		case "caddy", "iottunnel-agent", "iottunnel-conformance":
			if program == "iottunnel-conformance" {
				continue // its own test runs it
			}
			checkFlags(t, b, program, words[1:])
		case "make":
			args := append([]string{"-n", "-C", ".."}, words[1:]...)
			if i := slices.IndexFunc(args, func(a string) bool { return strings.ContainsAny(a, "'\"") }); i >= 0 {
				args = args[:i]
			}
			if out, err := exec.Command("make", args...).CombinedOutput(); err != nil {
				t.Errorf("%s: make %v: %s", b, words[1:], out)
			}
		}
	}
}

// placeholders in usage lines, which are no shell.
var placeholders = strings.NewReplacer("[--", "--", "]", "", "…", "x", "<", "", ">PASSWORD", "PASSWORD")

var helps = make(map[string]string) // TestDocumentedCommands alone uses it

// checkFlags wants a subcommand to be there, and to have the flags that are used.
func checkFlags(t *testing.T, b block, program string, words []string) {
	t.Helper()
	var sub []string
	for _, word := range words {
		if !regexp.MustCompile(`^[a-z][a-z-]*$`).MatchString(word) || len(sub) == 3 {
			break
		}
		if len(sub) > 0 && sub[0] != "iottunnel" && sub[0] != "service" {
			break
		}
		if len(sub) == 2 && sub[1] != "code" {
			break
		}
		sub = append(sub, word)
	}
	key := program + " " + strings.Join(sub, " ")
	if _, ok := helps[key]; !ok {
		status, out, errs := harness.RunToEnd(t, harness.Patience, harness.Command{
			Name: key, Args: append(append([]string{harness.Binary(t, program)}, sub...), "--help"),
		})
		if status != 0 {
			t.Errorf("%s: %s: status %d: %s", b, key, status, errs)
		}
		helps[key] = out + errs
	}
	if len(sub) > 0 && !strings.Contains(helps[key], sub[len(sub)-1]) {
		t.Errorf("%s: there is no `%s`", b, key)
	}
	for _, word := range words {
		flag, _, _ := strings.Cut(strings.Trim(word, "[]"), "=")
		if strings.HasPrefix(flag, "--") && !strings.Contains(helps[key], flag) {
			t.Errorf("%s: `%s` has no flag %s", b, key, flag)
		}
	}
}

// TestDocumentedSessions runs the blocks behind `<!-- run -->`, in the order of their
// page, in a folder of their own, against an edge of their own.
func TestDocumentedSessions(t *testing.T) {
	t.Parallel()
	pages := make(map[string][]block)
	for _, b := range blocks(t) {
		if b.run {
			pages[b.page] = append(pages[b.page], b)
		}
	}
	if len(pages) == 0 {
		t.Fatal("no page has a block behind <!-- run -->")
	}
	for page, all := range pages {
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			r := startRig(t, oneSite{auth: "auth enrolled\n" + twoTokens}.caddyfile())
			bin := t.TempDir()
			// The admin endpoint is not at its usual place.
			wrap := fmt.Sprintf("#!/bin/sh\nif [ \"$1\" = iottunnel ]; then exec %q \"$@\" --address %s; fi\nexec %q \"$@\"\n", harness.Binary(t, "caddy"), r.admin, harness.Binary(t, "caddy"))
			if err := os.WriteFile(filepath.Join(bin, "caddy"), []byte(wrap), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(harness.Binary(t, "iottunnel-agent"), filepath.Join(bin, "iottunnel-agent")); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			for name, text := range map[string]string{"ids.csv": "cam-20\ncam-21\n", "Caddyfile": "http://localhost:1 {\n\trespond ok\n}\n"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, b := range all {
				text := strings.NewReplacer("localhost:2019", r.admin).Replace(b.text)
				status, out, errs := harness.RunToEnd(t, harness.Patience, harness.Command{
					Name: b.String(), Dir: dir, Args: []string{"sh", "-e", "-c", text},
					Env: []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + dir},
				})
				if status != 0 {
					t.Errorf("%s: status %d\n%s%s", b, status, out, errs)
				}
			}
		})
	}
}

// TestWebhookSnippet runs the receiver that docs/operations.md shows.
func TestWebhookSnippet(t *testing.T) {
	t.Parallel()
	for _, b := range blocks(t) {
		if b.lang != "python" {
			continue
		}
		test := b.text + `
import time
def sign(body, secret, t):
    return "t=%d,v1=%s" % (t, hmac.new(secret, b"%d." % t + body, hashlib.sha256).hexdigest())
now = int(time.time())
assert genuine(b"{}", sign(b"{}", b"secret", now), b"secret")
assert genuine(b"{}", sign(b"{}", b"other", now) + ",v1=" + sign(b"{}", b"secret", now).split("v1=")[1], b"secret")
assert not genuine(b"{ }", sign(b"{}", b"secret", now), b"secret")
assert not genuine(b"{}", sign(b"{}", b"secret", now - 3600), b"secret")
assert not genuine(b"{}", "", b"secret")
`
		cmd := exec.Command("python3", "-c", test)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			t.Errorf("%s: %v: %s", b, err, out.String())
		}
	}
}

// TestLinks wants what pages link to in the repository to be there.
func TestLinks(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	for _, page := range append(pages, "../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if err := fileExists(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			}
		}
	}
}
