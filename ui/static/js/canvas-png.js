// A black and white PNG, one bit a pixel. Ours, since a canvas writes 32 bits and some browsers blur what it reads.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

function checksum(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = (sum >>> 8) ^ TABLE[(sum ^ byte) & 255];
  return ~sum >>> 0;
}

function chunk(name, data) {
  const bytes = new Uint8Array(data.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(name), 4);
  bytes.set(data, 8);
  view.setUint32(data.length + 8, checksum(bytes.subarray(4, data.length + 8)));
  return bytes;
}

// White where any of the planes, Uint32Arrays, holds something; null if none does anywhere.
export async function blackAndWhite(width, height, ...planes) {
  const stride = Math.ceil(width / 8) + 1; // each row begins with a byte that says "as it is"
  const rows = new Uint8Array(stride * height);
  let isWhite = 0;
  for (const plane of planes)
    for (let y = 0, at = 0; y < height; y++)
      for (let x = 0; x < width; x += 8) {
        let bits = 0;
        const count = Math.min(8, width - x);
        for (let bit = 0; bit < count; bit++) if (plane[at + bit]) bits |= 128 >> bit;
        at += count;
        rows[y * stride + 1 + (x >> 3)] |= bits;
        isWhite |= bits;
      }
  if (!isWhite) return null;
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint8(8, 1); // bits; the zeros after it: grey, deflate, filters, not interlaced
  return new Blob(
    [
      Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10),
      chunk("IHDR", new Uint8Array(header.buffer)),
      chunk("IDAT", new Uint8Array(await new Response(packed).arrayBuffer())),
      chunk("IEND", new Uint8Array()),
    ],
    { type: "image/png" },
  );
}
