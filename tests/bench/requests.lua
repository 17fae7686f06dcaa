-- Sends the prepared requests of tests/bench/load.py, one body after the other.
wrk.method = os.getenv("BENCH_METHOD")
for name, value in string.gmatch(os.getenv("BENCH_HEADERS") or "", "([^\n:]+): ([^\n]*)") do
  wrk.headers[name] = value
end

local requests, next_request = {}, 0

function init()
  for line in io.lines(os.getenv("BENCH_BODIES")) do
    requests[#requests + 1] = wrk.format(nil, nil, nil, (string.gsub(line, "\1", "\n")))
  end
  if #requests == 0 then requests[1] = wrk.format() end
end

function request()
  next_request = next_request % #requests + 1
  return requests[next_request]
end
