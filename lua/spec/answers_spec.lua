local answers = require "iottunnel.answers"

local DATA = "../tunnelcore/answers/testdata/"
local BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,"
    .. "image/avif,image/webp,*/*;q=0.8"
local HTML, JSON, TEXT = "text/html; charset=utf-8", "application/json",
    "text/plain; charset=utf-8"


-- golden reads an answer as the edge gives it.
local function golden(name)
    local file = assert(io.open(DATA .. name))
    local all = file:read("*a")
    file:close()
    local head, body = all:match("^(.-)\n\n(.*)$")
    local headers = {}
    for key, value in head:gmatch("\n([^:\n]+): ([^\n]*)") do
        headers[key] = value
    end
    return tonumber(head:match("^HTTP/1.1 (%d+)")), headers, body
end


local function check(name, answer, accept)
    local status, headers, body = golden(name)
    local got_status, got_headers, got_body =
        answers.render(answer, accept, "GET")
    for key, value in pairs(got_headers) do
        got_headers[key] = tostring(value)
    end
    assert.are.equal(status, got_status, name)
    assert.are.same(headers, got_headers, name)
    assert.are.equal(body, got_body, name)
end


describe("answers", function()
    local codes = require("iottunnel.pages").codes
    for code in pairs(codes) do
        it("are the edge's: " .. code, function()
            -- 401 asks for a credential, which no router does.
            if code == "unauthorized" then
                return
            end
            check(code .. ".html", { code = code }, BROWSER)
            check(code .. ".json", { code = code }, "application/json")
            check(code .. ".txt", { code = code }, "*/*")
        end)
    end

    it("say when a device was last seen, and when to ask again", function()
        local seen = 1773032704 -- 9 March 2026, 05:05:04 UTC
        local offline = { code = "device_offline", last_seen = seen }
        local retry = { code = "device_offline", retry_after = 30 }
        for ext, accept in pairs { html = BROWSER, json = JSON, txt = "*/*" } do
            check("device_offline-seen." .. ext, offline, accept)
            check("device_offline-retry." .. ext, retry, accept)
            check("unavailable-retry." .. ext,
                { code = "unavailable", retry_after = 30 }, accept)
        end
    end)

    it("ask nobody to send a POST again", function()
        local _, _, body = answers.render({ code = "device_offline" }, BROWSER,
            "POST")
        assert.is_nil(body:find("http-equiv", 1, true))
    end)

    it("escape what they show", function()
        local _, _, body = answers.render({ code = "bad_request",
            message = "<b>'\"&{{code}}%1" }, BROWSER, "GET")
        assert.is_truthy(body:find("&lt;b&gt;&#39;&#34;&amp;{{code}}%1", 1, true))
    end)

    it("are JSON for agents", function()
        local _, headers, body = answers.render({ code = "unavailable" }, false,
            "GET")
        assert.are.equal(JSON, headers["Content-Type"])
        assert.is_nil(headers["Vary"])
        assert.is_truthy(body:find('^{"error":"unavailable"'))
    end)

    for accept, want in pairs {
        [""] = TEXT, ["*/*"] = TEXT, ["*"] = TEXT, [BROWSER] = HTML,
        ["text/html"] = HTML, ["TEXT/HTML;Level=1"] = HTML,
        ["text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"] = HTML,
        ["text/html,text/plain"] = HTML, ["application/json"] = JSON,
        ["application/json; charset=utf-8"] = JSON,
        ["application/json, text/plain, */*"] = JSON,
        ["application/json, text/javascript, */*; q=0.01"] = JSON,
        ["application/*"] = JSON, ["text/*"] = TEXT, ["text/plain"] = TEXT,
        ["text/html, application/json"] = HTML,
        ["text/html;q=0.9, application/json"] = JSON,
        ["application/json;q=0.9,text/html;q=0.899"] = JSON,
        ["application/json;q=0.5, text/html ; q=0.51"] = HTML,
        ["application/json;q=0.5 , text/html\t;\tQ=0.51"] = HTML,
        ["text/html;q=0, */*"] = TEXT,
        ["text/plain;q=0, text/html;q=0, */*;q=0.1"] = JSON,
        ["text/html;q=0.0, application/json;q=0.000"] = TEXT,
        ["image/avif,image/webp,*/*;q=0.8"] = TEXT,
        ["text/event-stream"] = TEXT,
        ["application/json;q=1.000,text/html;q=1"] = HTML,
        ["application/json, text/html;q=2"] = JSON,
        ["application/json;q=0.1, text/html;q=high"] = JSON,
        ["application/json;q=0.1, text/html;q="] = JSON,
        ["application/json;q=0.1, text/html;q=1.001"] = JSON,
        ["application/json;q=0.1, text/html;q=-1"] = JSON,
        ['text/csv;a="x,text/html;q=1", application/json;q=0.2'] = JSON,
        ['text/csv;a="\\",text/html,\\"", application/json;q=0.2'] = JSON,
        ["application/json;q=0.2;text/html"] = JSON,
        ["/,;,html,text/,*/html,application/json;q=0.001"] = JSON,
    } do
        it("take the form that is asked for: " .. accept, function()
            assert.are.equal(want, answers.form(accept))
        end)
    end

    it("read all lines of an Accept, or none", function()
        assert.are.equal(HTML,
            answers.form { "application/json;q=0.4", "text/html;q=0.6" })
        assert.are.equal(TEXT, answers.form(nil))
    end)
end)
