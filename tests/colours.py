"""The contrast of text against its background."""


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast of two #rrggbb colours, 1 to 21."""
    def luminance(colour: str) -> float:
        shares = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
